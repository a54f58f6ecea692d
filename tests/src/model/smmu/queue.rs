//! The command queue: fetch, errors, and when commands take effect (IHI 0070, 3.5, 4 and 7.1).

use super::registers::{CMDQ_ERR, CMDQEN};
use super::{Bus, Fault, Smmu};

/// CMDQ_CONS.ERR codes (6.3.28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CommandError {
    /// CERROR_ILL: the command is illegal or not supported.
    Illegal = 1,
    /// CERROR_ABT: the command could not be read.
    Abort = 2,
    /// CERROR_ATC_INV_SYNC: an ATC invalidation timed out.
    AtcInvSync = 3,
}

/// How a command ended.
pub enum Outcome {
    /// Consumed.
    Done,
    /// A SYNC that cannot complete yet.
    Waiting,
    /// Refused.
    Error(CommandError),
}

impl Smmu {
    fn cmdq_log2(&self) -> u32 {
        ((self.registers.cmdq_base & 31) as u32).min(self.config.cmdq_max_log2())
    }

    /// Commands that were published and not consumed.
    pub fn commands_waiting(&self) -> u32 {
        let mask = (2u32 << self.cmdq_log2()) - 1;
        self.registers.cmdq_prod.wrapping_sub(self.registers.cmdq_cons) & mask
    }

    pub(crate) fn write_cmdq_prod(&mut self, bus: &mut Bus, value: u32) {
        let log2 = self.cmdq_log2();
        let mask = (2u32 << log2) - 1;
        // 6.3.27: WR [19:0]; bits above the wrap bit are RES0 in effect.
        if value & !mask != 0 {
            self.violation(
                bus,
                format_args!("CMDQ_PROD = {value:#x}, above the wrap bit of 2^{log2} entries"),
            );
        }
        let enabled = self.registers.cr0ack & CMDQEN != 0;
        let waiting = value.wrapping_sub(self.registers.cmdq_cons) & mask;
        if enabled && waiting > 1 << log2 {
            self.violation(
                bus,
                format_args!("CMDQ_PROD overruns CONS: {waiting} commands in 2^{log2} entries"),
            );
        }
        let step = value.wrapping_sub(self.registers.cmdq_prod) & mask;
        if enabled && step > 1 << log2 {
            self.violation(
                bus,
                format_args!("CMDQ_PROD goes back: {:#x} to {value:#x}", self.registers.cmdq_prod),
            );
        }
        if !enabled && self.registers.cr0 & CMDQEN != 0 {
            self.violation(bus, "CMDQ_PROD written before CR0ACK shows CMDQEN");
        }
        self.registers.cmdq_prod = value & mask;
        self.next_command_ns = self.next_command_ns.max(bus.now_ns + self.config.command_delay_ns);
    }

    /// Consumes the commands that are due.
    pub(crate) fn step_commands(&mut self, bus: &mut Bus) {
        let mask = (2u32 << self.cmdq_log2()) - 1;
        loop {
            let r = &self.registers;
            // 7.1: an active CMDQ_ERR stops the queue until it is acknowledged.
            if r.cr0ack & CMDQEN == 0 || (r.gerror ^ r.gerrorn) & CMDQ_ERR != 0 || self.stuck {
                return;
            }
            let at = r.cmdq_cons & 0xf_ffff;
            if at == r.cmdq_prod || bus.now_ns < self.next_command_ns {
                return;
            }
            let slot = (r.cmdq_base & 0x00ff_ffff_ffff_ffe0) + u64::from(at & (mask >> 1)) * 16;
            let outcome = match (bus.memory.read(slot), bus.memory.read(slot + 8)) {
                (Some(low), Some(high)) => self.consume(bus, at, [low, high]),
                _ => {
                    self.violation(bus, format_args!("command at {slot:#x} is not in RAM"));
                    Outcome::Error(CommandError::Abort)
                }
            };
            match outcome {
                Outcome::Waiting => return,
                Outcome::Done => {
                    self.registers.cmdq_cons = at.wrapping_add(1) & mask;
                    self.next_command_ns += self.config.command_delay_ns;
                }
                // 7.1: CONS stays at the failing command, ERR says why, GERROR toggles.
                Outcome::Error(code) => {
                    self.registers.cmdq_cons = at | (code as u32) << 24;
                    self.raise(bus, CMDQ_ERR);
                    return;
                }
            }
        }
    }

    fn consume(&mut self, bus: &mut Bus, at: u32, command: [u64; 2]) -> Outcome {
        if let Some((slot, content)) = self.poisoned {
            if slot == at && content == command {
                return Outcome::Error(CommandError::Illegal);
            }
            self.poisoned = None;
        }
        if self.doomed_forever {
            return Outcome::Error(CommandError::Illegal);
        }
        let mut skip = false;
        // ATC_INV is 0x40.
        let due = |&(when, fault): &(u64, Fault)| {
            when <= self.commands && (fault != Fault::NoAnswer || command[0] as u8 == 0x40)
        };
        if let Some(position) = self.faults.iter().position(due) {
            match self.faults.remove(position).map(|(_, fault)| fault) {
                Some(Fault::Skip) => skip = true,
                Some(Fault::Illegal) => {
                    self.poisoned = Some((at, command));
                    return Outcome::Error(CommandError::Illegal);
                }
                Some(Fault::IllegalForever) => {
                    self.doomed_forever = true;
                    return Outcome::Error(CommandError::Illegal);
                }
                Some(Fault::Abort) => return Outcome::Error(CommandError::Abort),
                Some(Fault::Stuck) => {
                    self.stuck = true;
                    return Outcome::Waiting;
                }
                Some(Fault::Late(ns)) => {
                    self.next_command_ns = bus.now_ns + ns;
                    return Outcome::Waiting;
                }
                Some(Fault::Raise(bits)) => {
                    self.raise(bus, bits);
                    if bits & CMDQ_ERR != 0 {
                        return Outcome::Waiting;
                    }
                }
                Some(Fault::NoAnswer) => self.atc.lose_next = true,
                None => {}
            }
        }
        let outcome = if skip { Outcome::Done } else { self.execute(bus, command) };
        if matches!(outcome, Outcome::Done) {
            self.commands += 1;
            *self.counts.entry(command[0] as u8).or_default() += 1;
            self.history.push_back(command);
            if self.history.len() > 256 {
                self.history.pop_front();
            }
        }
        outcome
    }
}
