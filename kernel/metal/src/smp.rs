//! The other processors: counted, and left where the firmware parked them.

use crate::acpi::Platform;
use crate::apic;

/// Says how many processors there are. Neither the firmware nor the boot loader starts any but the first,
/// and Duet does not either: they wait for a start-up interrupt that never comes.
pub fn report(platform: &Platform) {
    let own = apic::id();
    let others = platform.processors.iter().filter(|id| **id != own).count();
    log::info!("processors: 1 running (APIC {own}), {others} parked, never started");
}
