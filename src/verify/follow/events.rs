//! Server-sent events (HTML living standard, section 9.2), as far as the feed has them: what stands in `data` of every `state`.

use super::Trouble;

/// Collects the octets of a stream into events.
#[derive(Debug)]
pub(super) struct Events {
    longest: usize,
    buffer: Vec<u8>,
    /// Up to where the buffer holds no end of a line.
    searched: usize,
    is_state: bool,
    data: String,
}

impl Events {
    /// No event is longer than this.
    pub(super) fn new(longest: usize) -> Self {
        Self { longest, buffer: Vec::new(), searched: 0, is_state: false, data: String::new() }
    }

    /// Takes what came in.
    pub(super) fn extend(&mut self, octets: &[u8]) {
        self.buffer.extend_from_slice(octets);
    }

    /// The next state that came in whole.
    ///
    /// # Errors
    /// When it is too long, or no text.
    pub(super) fn next(&mut self) -> Result<Option<String>, Trouble> {
        while let Some(end) = self.buffer[self.searched..].iter().position(|octet| *octet == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
            self.searched = 0;
            let line = std::str::from_utf8(&line).map_err(|_| Trouble::new("the stream is no text"))?;
            if let Some(state) = self.line(line.trim_end_matches(['\n', '\r'])) {
                return Ok(Some(state));
            }
        }
        self.searched = self.buffer.len();
        if self.buffer.len() + self.data.len() > self.longest {
            return Err(Trouble::new("an event of the stream is too long"));
        }
        Ok(None)
    }

    fn line(&mut self, line: &str) -> Option<String> {
        if line.is_empty() {
            let (data, is_state) = (std::mem::take(&mut self.data), std::mem::take(&mut self.is_state));
            return (is_state && !data.is_empty()).then_some(data);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        match (field, value.strip_prefix(' ').unwrap_or(value)) {
            ("event", event) => self.is_state = event == "state",
            ("data", data) => self.data.push_str(data),
            // `id` says what stands in the state; the rest is for browsers, or a comment.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_out_whole_however_they_came_in() {
        let stream = b": hello\r\n\r\nevent: state\r\nid: a:1\r\ndata: one\r\n\r\nevent: other\ndata: no\n\nevent:state\ndata:two\n\ndata: no\n\n";
        for size in 1..stream.len() {
            let mut events = Events::new(64);
            let mut found = Vec::new();
            for chunk in stream.chunks(size) {
                events.extend(chunk);
                while let Some(state) = events.next().unwrap() {
                    found.push(state);
                }
            }
            assert_eq!(found, ["one", "two"], "{size}");
        }
    }

    #[test]
    fn what_never_ends_is_cut_off() {
        let mut events = Events::new(64);
        events.extend(&[b'x'; 65]);
        assert!(events.next().is_err());
        let mut events = Events::new(64);
        events.extend(b"\xff\n");
        assert!(events.next().is_err());
        let mut events = Events::new(64);
        for _ in 0..7 {
            events.extend(b"data: 0123456789\n");
        }
        assert!(events.next().is_err());
    }
}
