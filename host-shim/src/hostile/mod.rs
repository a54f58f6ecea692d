//! A hostile host: anything that a host can do, chosen at random.
//!
//! An *input* is a sequence of [`Step`]s of 32 bytes. A step is chosen by whoever attacks: a generator of random numbers ([`Step::seeded`]), or a fuzzer that
//! looks at what its input reached. It becomes an [`Action`] with what earlier answers told ([`Knowledge`]): a hypercall, whose arguments come from the
//! kinds of [`abi::TABLE`], an access to an emulated register, what a driver keeps in memory, or DMA. [`Knowledge::act`] does it on any
//! [`Host`](crate::host::Host), and says what no hypervisor may let happen, as far as a host can see it; the rest is for an oracle.
//!
//! Addresses are chosen by their place in the host's memory, so that an input means the same on every machine of the same shape. Each step stands alone:
//! an input from which steps are taken away is an input, so one that finds something can be made shorter by trying.

mod action;
mod calls;
mod disturb;
mod driver;
mod interrupts;
mod knowledge;
pub mod oracle;
mod outcome;
mod places;
mod setting;
mod step;
mod tally;

pub use action::Action;
pub use disturb::disturb;
pub use knowledge::Knowledge;
pub use outcome::Outcome;
pub use setting::{Rules, Setting, Shape};
pub use step::{Choices, STEP_BYTES, Step, steps};
pub use tally::{Log, MAX_CPUS, Tally};
