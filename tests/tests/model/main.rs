//! The model itself, driven by hand: before it judges the hypervisor it has to be right itself, and each rule has to be able to fail.

mod ats;
mod context;
mod needless;
mod nested;
mod stage2;
mod timing;
