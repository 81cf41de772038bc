//! The heap: small objects, in blocks taken from the frame allocator.

use core::alloc::Layout;

use spin::Mutex;
use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use super::{frames, physmap};

/// The heap grows by this much, or by what one allocation needs: 4 KiB << 6 = 256 KiB.
const GROWTH_ORDER: u32 = 6;
/// Largest single growth: 4 KiB << 12 = 16 MiB.
const MAX_ORDER: u32 = 12;

/// Takes more memory from the frame allocator.
#[derive(Debug)]
struct FrameSource;

// SAFETY: `acquire` claims only frames just allocated and never uses the heap itself.
unsafe impl Source for FrameSource {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // Room for the allocation, its alignment and the allocator's own words.
        let wanted = layout.size().checked_add(layout.align()).ok_or(())? + 4096;
        let order = (wanted.div_ceil(4096))
            .next_power_of_two()
            .trailing_zeros()
            .max(GROWTH_ORDER);
        if order > MAX_ORDER {
            return Err(());
        }
        let run = frames::alloc_run(order).ok_or(())?;
        // SAFETY: the run was just allocated and is mapped; it is never given back.
        let claimed = unsafe { talc.claim(physmap::ptr(run), 4096 << order) };
        claimed.map(|_| ()).ok_or(())
    }
}

#[global_allocator]
static HEAP: TalcLock<Mutex<()>, FrameSource> = TalcLock::new(FrameSource);
