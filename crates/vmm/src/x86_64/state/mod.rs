//! What KVM knows of a machine, taken out of it and put back: registers of each vCPU, interrupt
//! controllers, clock.
//!
//! The structures are those of KVM's own interface, which never change; what people look for in a snapshot
//! (CPUID, model-specific registers) is spelled out.

mod abi;
mod clock;
mod msrs;
mod vcpu;
mod vm;

pub use self::{
    abi::Abi,
    clock::Elapsed,
    vcpu::{CpuidEntry, VcpuState, cpuid_of},
    vm::VmState,
};
