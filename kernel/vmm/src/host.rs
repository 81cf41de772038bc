//! What the guest machine asks of the host, and nothing else.

/// The host.
pub trait Host {
    /// Nanoseconds since the host started; never goes back. Only [`crate::nondet::Door`] may ask.
    fn now_ns(&mut self) -> u64;

    /// Random bits from the host's entropy; 0 if it has none. Only [`crate::nondet::Door`] may ask.
    fn random(&mut self) -> u64;

    /// Seconds since 1970 by the host's clock; 0 if it has none. Only [`crate::nondet::Door`] may ask.
    fn unix_seconds(&mut self) -> u64;

    /// Host TSC ticks in so many nanoseconds, at least 1: how long the processor may run, which no guest sees.
    fn ticks(&self, ns: u64) -> u64;

    /// A line that the guest named `guest` wrote to its debug console or an unattached serial port, without its line
    /// feed.
    fn console_line(&mut self, guest: &str, line: &[u8]);

    /// A byte that the guest with the host's serial port wrote to COM1.
    fn console_byte(&mut self, byte: u8);

    /// A frame that network card `nic` of the guest named `guest` sends. A host without a network drops it.
    fn transmit(&mut self, _guest: &str, _nic: u8, _frame: &[u8]) {}

    /// A byte typed for the guest with the host's serial port. Only [`crate::nondet::Door`] may ask.
    fn console_input(&mut self) -> Option<u8>;
}
