//! What the rest of the host asks of VT-x.

use vmm::cpu::CounterKind;
use vmm::pmu::Skid;

use super::{Counting, NewError, Vcpu, Vmx};
use crate::vt::Backend;

impl Backend for Vmx {
    const NAME: &'static str = "VT-x";
    type Vcpu = Vcpu;
    type NewError = NewError;

    fn new_vcpu(&self) -> Result<Vcpu, NewError> {
        Vcpu::new(self)
    }

    fn calibrate(&mut self) -> Result<CounterKind, NewError> {
        Vmx::calibrate(self)
    }

    fn reject_counter(&mut self) {
        self.counting = Counting::ExitOrdinal;
    }

    fn set_skid(&mut self, skid: Option<Skid>) {
        self.skid = skid;
    }

    fn skew_counter(&mut self, ticks: i64) {
        if let Counting::Tsc { overhead } = &mut self.counting {
            *overhead = overhead.wrapping_add_signed(ticks);
        }
    }
}
