//! Checks that the hypervisor keeps its hands off the guest's x87 and SIMD registers.
//!
//! They stay live while the hypervisor runs, so one vector instruction of a careless compiler would corrupt a guest
//! without a trace. Only the module `fpu`, which saves and restores them, may name them.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::workspace::{llvm_tool, output_of};

/// A forbidden instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The function it is in, demangled.
    pub function: String,
    /// The line of the disassembly.
    pub instruction: String,
}

/// Disassembles an ELF and returns what it should not contain.
///
/// # Errors
///
/// `llvm-objdump` is missing or cannot read the file; a file without instructions or without the module `fpu` is an
/// error too, because then nothing was checked.
pub fn check(elf: &Path) -> Result<Vec<Violation>> {
    let mut objdump = Command::new(llvm_tool("llvm-objdump")?);
    objdump.args([
        "--disassemble",
        "--demangle",
        "--no-show-raw-insn",
        "--no-leading-addr",
    ]);
    scan(&output_of(objdump.arg(elf))?)
}

/// Searches a disassembly in AT&T syntax, with demangled function labels and without addresses and bytes.
///
/// # Errors
///
/// It holds no instruction, or none of the module `fpu`.
pub fn scan(disassembly: &str) -> Result<Vec<Violation>> {
    let mut function = "";
    let (mut instructions, mut allowed) = (0_u64, 0_u64);
    let mut violations = Vec::new();
    for line in disassembly.lines() {
        if let Some(label) = line.strip_prefix('<').and_then(|l| l.strip_suffix(">:")) {
            function = label;
        } else if let Some(instruction) = line.strip_prefix([' ', '\t']).map(str::trim) {
            instructions += 1;
            if !uses_vector_state(instruction) {
                continue;
            }
            if is_fpu_module(function) {
                allowed += 1;
            } else {
                violations.push(Violation {
                    function: function.to_owned(),
                    instruction: instruction.replace('\t', " "),
                });
            }
        }
    }
    anyhow::ensure!(
        instructions > 1000 || cfg!(test),
        "only {instructions} instructions found: was the right file disassembled?"
    );
    anyhow::ensure!(
        allowed > 0,
        "the module fpu saves no state: were its symbols found?"
    );
    Ok(violations)
}

/// Whether a demangled function belongs to the module `fpu`.
fn is_fpu_module(function: &str) -> bool {
    function.split("::").any(|part| part == "fpu")
}

/// Instructions that touch x87 or SIMD state without naming a register, besides all that begin with `f`.
const WITHOUT_OPERAND: [&str; 11] = [
    "wait",
    "emms",
    "ldmxcsr",
    "stmxcsr",
    "vldmxcsr",
    "vstmxcsr",
    "vzeroupper",
    "vzeroall",
    "xsave",
    "xrstor",
    "xsetbv",
];

/// How the names of the registers begin: SIMD, masks, tiles, MMX, x87.
const REGISTERS: [&str; 7] = ["%xmm", "%ymm", "%zmm", "%k", "%tmm", "%mm", "%st"];

fn uses_vector_state(instruction: &str) -> bool {
    let mut words = instruction.splitn(2, ['\t', ' ']);
    let mnemonic = words.next().unwrap_or_default();
    // XSETBV changes what the state is; XSAVE and XRSTOR come as xsavec, xsaves64, xrstor64 …
    let named = WITHOUT_OPERAND.iter().any(|m| {
        mnemonic == *m
            || (m.starts_with("xsave") || m.starts_with("xrstor")) && mnemonic.starts_with(m)
    });
    // No instruction outside x87 and FXSAVE/FXRSTOR begins with f.
    let x87 = mnemonic.starts_with('f');
    let operands = words.next().unwrap_or_default();
    // Symbols behind # or in <…> are not operands.
    let operands = operands.split(['#', '<']).next().unwrap_or_default();
    named || x87 || REGISTERS.iter().any(|register| operands.contains(register))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same function with one more instruction, beside the module that may use the registers.
    fn disassembly(function: &str, instruction: &str) -> String {
        format!(
            "\nduet: file format elf64-x86-64\n\nDisassembly of section .text:\n\n\
             <duet::fpu::save>:\n\txsave64\t(%rdi)\n\tretq\n\n\
             <{function}>:\n\tpushq\t%rbp\n\tmovq\t%rsp, %rbp\n\t{instruction}\n\tpopq\t%rbp\n\tretq\n"
        )
    }

    #[test]
    fn a_seeded_violation_is_found() {
        for instruction in [
            "movaps\t%xmm0, (%rdi)",
            "vmovdqu\t(%rax), %ymm7",
            "vpxorq\t%zmm1, %zmm1, %zmm1",
            "movq\t%mm3, %rax",
            "fldl\t(%rsp)",
            "fninit",
            "fxsave\t(%rdi)",
            "emms",
            "vzeroupper",
            "xrstors64\t(%rdi)",
            "kmovq\t%k1, %rax",
        ] {
            let found = scan(&disassembly("duet::vt::svm::run", instruction)).unwrap();
            assert_eq!(found.len(), 1, "{instruction}: {found:?}");
            assert_eq!(found[0].function, "duet::vt::svm::run");
            assert_eq!(found[0].instruction, instruction.replace('\t', " "));
        }
    }

    #[test]
    fn the_fpu_module_may() {
        for function in [
            "duet::fpu::restore",
            "<duet::fpu::Area as core::ops::Drop>::drop",
        ] {
            assert_eq!(
                scan(&disassembly(function, "movaps\t%xmm0, (%rdi)")).unwrap(),
                []
            );
        }
        let similar = "duet::vt::fpu_like::run";
        assert_eq!(scan(&disassembly(similar, "fninit")).unwrap().len(), 1);
    }

    #[test]
    fn general_instructions_pass() {
        for instruction in [
            "movq\t%rax, %cr3",
            "movl\t$0x1, %eax",
            "callq\t0x1000 <core::num::f32::%xmm0>",
            "leaq\t0x10(%rip), %rdi # 0x2000 <anon.%xmm>",
            "rep\t\tstosb\t%al, %es:(%rdi)",
            "prefetcht0\t(%rax)",
        ] {
            assert_eq!(
                scan(&disassembly("a::b", instruction)).unwrap(),
                [],
                "{instruction}"
            );
        }
    }

    #[test]
    fn a_check_of_nothing_fails() {
        assert!(scan("").is_err());
        assert!(scan("<a::b>:\n\tretq\n").is_err(), "no fpu module");
    }
}
