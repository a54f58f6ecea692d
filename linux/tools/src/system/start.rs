//! A program's start and end.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::calls::{Number, call, exit};

// Linux starts a program with the number of its arguments at the stack pointer, and pointers to them above.
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "mov x0, sp", "b start_program");

unsafe extern "Rust" {
    /// What the program does with the words after its name: what to print, or what was wrong. `program!` defines it.
    safe fn program_main(typed: &[&str]) -> Result<String, String>;
}

/// Makes a function a program.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn program_main(
            typed: &[&str],
        ) -> ::core::result::Result<::alloc::string::String, ::alloc::string::String> {
            $main(typed)
        }
    };
}

#[unsafe(no_mangle)]
extern "C" fn start_program(stack: *const usize) -> ! {
    // SAFETY: Linux put the number and so many pointers there, and they stay.
    let arguments = unsafe {
        let count = *stack;
        core::slice::from_raw_parts(stack.add(1).cast::<*const c_char>(), count)
    };
    // SAFETY: each points at a text that ends with NUL, and stays.
    let texts = arguments.iter().skip(1).map(|&argument| unsafe { CStr::from_ptr(argument) }.to_str());
    let answer = match texts.collect::<Result<Vec<&str>, _>>() {
        Ok(typed) => program_main(&typed),
        Err(_) => Err("an argument is no text: write it in UTF-8".into()),
    };
    match answer {
        Ok(text) => {
            say(&text);
            exit(0)
        }
        Err(text) => {
            write(2, format!("{text}\n").as_bytes());
            exit(1)
        }
    }
}

/// Prints a text.
pub fn say(text: &str) {
    write(1, text.as_bytes());
}

/// Writes all of it, as far as that goes.
fn write(descriptor: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the call reads from `bytes`.
        let written =
            unsafe { call(Number::Write, [descriptor, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0]) };
        let Ok(written) = written else { return };
        bytes = bytes.get(written as usize..).unwrap_or_default();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    write(2, format!("{info}\n").as_bytes());
    exit(101)
}
