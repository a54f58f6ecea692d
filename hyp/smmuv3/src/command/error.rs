//! Why a command queue stopped (IHI 0070, 7.1).

use core::fmt;

/// Why the command queue stopped: CMDQ_CONS.ERR (7.1). Open, because hardware may say what this text does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CommandError(pub u8);

impl CommandError {
    /// CERROR_ILL: a command is not legal on this SMMU.
    pub const ILLEGAL: Self = Self(1);
    /// CERROR_ABT: reading the queue was aborted.
    pub const ABORT: Self = Self(2);
    /// CERROR_ATC_INV_SYNC: a CMD_SYNC found that an ATC did not answer.
    pub const ATC_INV_SYNC: Self = Self(3);
}

impl fmt::Debug for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ILLEGAL => f.write_str("CERROR_ILL (illegal command)"),
            Self::ABORT => f.write_str("CERROR_ABT (reading the queue was aborted)"),
            Self::ATC_INV_SYNC => f.write_str("CERROR_ATC_INV_SYNC (an ATC did not answer)"),
            Self(other) => write!(f, "CMDQ_CONS.ERR {other:#x}"),
        }
    }
}
