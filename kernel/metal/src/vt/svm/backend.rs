//! What the rest of the host asks of SVM.

use vmm::cpu::CounterKind;
use vmm::pmu::Skid;

use super::{Counting, NewError, Svm, Vcpu, counter};
use crate::vt::{Backend, Uncounted};

impl Backend for Svm {
    const NAME: &'static str = "SVM";
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
        self.counting = Counting::exit_ordinal();
    }

    fn set_skid(&mut self, skid: Option<Skid>) {
        self.skid = skid;
    }

    fn skew_counter(&mut self, ticks: i64) {
        if let Counting::Tsc(constants) = &mut self.counting {
            constants.overhead = constants.overhead.wrapping_add_signed(ticks);
        }
    }
}
