//! A queue that has an end, in pieces and in octets, for what is told besides: nobody waits to get in, and what finds no room stays
//! outside.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::mpsc;

/// Where pieces go in.
pub struct Entrance<T> {
    queue: mpsc::Sender<(usize, T)>,
    /// The octets inside.
    held: Arc<AtomicUsize>,
    most: usize,
}

/// Where they come out, in order.
pub struct Exit<T> {
    queue: mpsc::Receiver<(usize, T)>,
    held: Arc<AtomicUsize>,
}

/// A queue for at most so many pieces of at most so many octets together.
#[must_use]
pub fn bounded<T>(pieces: usize, octets: usize) -> (Entrance<T>, Exit<T>) {
    let (entrance, exit) = mpsc::channel(pieces);
    let held = Arc::<AtomicUsize>::default();
    (Entrance { queue: entrance, held: held.clone(), most: octets }, Exit { queue: exit, held })
}

impl<T> Entrance<T> {
    /// Puts a piece of so many octets in; or says that there is no room, or nobody at the other end.
    #[must_use]
    pub fn offer(&self, octets: usize, piece: T) -> bool {
        let more = |held: usize| held.checked_add(octets).filter(|held| *held <= self.most);
        if self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            return false;
        }
        let is_in = self.queue.try_send((octets, piece)).is_ok();
        if !is_in {
            self.held.fetch_sub(octets, Ordering::AcqRel);
        }
        is_in
    }
}

impl<T> Exit<T> {
    /// The next piece and its octets, if there is one.
    pub fn take(&mut self) -> Option<(usize, T)> {
        let taken = self.queue.try_recv().ok();
        self.release(taken)
    }

    /// The next piece and its octets, once there is one; `None` once nobody puts any in. For a thread that has nothing else to do.
    pub fn wait(&mut self) -> Option<(usize, T)> {
        let taken = self.queue.blocking_recv();
        self.release(taken)
    }

    /// How many pieces are inside.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn release(&self, taken: Option<(usize, T)>) -> Option<(usize, T)> {
        if let Some((octets, _)) = &taken {
            self.held.fetch_sub(*octets, Ordering::AcqRel);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_end_in_pieces_and_in_octets() {
        let (entrance, mut exit) = bounded(3, 10);
        assert!(entrance.offer(4, 'a') && entrance.offer(4, 'b'));
        assert!(!entrance.offer(3, 'x') && !entrance.offer(usize::MAX, 'x'), "more octets than there is room for");
        assert!(entrance.offer(2, 'c'));
        assert!(!entrance.offer(0, 'x'), "more pieces");
        assert_eq!((exit.take(), exit.len()), (Some((4, 'a')), 2));
        assert!(!entrance.offer(5, 'x') && entrance.offer(4, 'd'));
        assert_eq!([exit.take(), exit.take(), exit.take()], [Some((4, 'b')), Some((2, 'c')), Some((4, 'd'))]);
        assert!(exit.take().is_none() && exit.is_empty());
        drop(entrance);
        assert_eq!(exit.wait(), None);
        let (entrance, exit) = bounded(1, 1);
        drop(exit);
        assert!(!entrance.offer(1, ()), "nobody is there");
    }
}
