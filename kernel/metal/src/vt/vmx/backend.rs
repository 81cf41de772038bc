//! What the rest of the host asks of VT-x.

use vmm::cpu::CounterKind;
use vmm::pmu::Skid;

use super::{Counting, NewError, Vcpu, Vmx, counter};
use crate::vt::{Backend, Uncounted};

impl Backend for Vmx {
    const NAME: &'static str = "VT-x";
    type Vcpu = Vcpu;
    type NewError = NewError;

    fn new_vcpu(&self) -> Result<Vcpu, NewError> {
        Vcpu::new(self)
    }

    fn calibrate(&mut self, way: CounterKind) -> Result<(), Uncounted<NewError>> {
        self.counting = counter::calibrate(self, way)?;
        Ok(())
    }

    fn reject_counter(&mut self) {
        self.counting = Counting::EXIT_ORDINAL;
    }

    fn set_skid(&mut self, skid: Option<Skid>) {
        self.skid = skid;
    }

    fn skew_counter(&mut self, ticks: i64) {
        self.counting.overhead = self.counting.overhead.wrapping_add_signed(ticks);
    }
}
