//! Everything that is tested from outside, in one binary.

// `cfg(test)` tells clippy that helpers are test code too, which may unwrap.
#[cfg(test)]
mod architecture;
