//! Host memory: frames, the physical map, the heap.

pub mod frames;
pub mod heap;
pub mod physmap;
