//! What the guest machine asks of the host, and nothing else.

/// The host.
pub trait Host {
    /// Nanoseconds since the host started; never goes back. Only [`crate::nondet::Door`] may ask.
    fn now_ns(&mut self) -> u64;

    /// Random bits from the host's entropy; 0 if it has none. Only [`crate::nondet::Door`] may ask.
    fn random(&mut self) -> u64;

    /// A line that the guest named `guest` wrote to its debug console, without its line feed.
    fn console_line(&mut self, guest: &str, line: &[u8]);
}
