//! The host's kernel: an arm64 `Image` (`Documentation/arch/arm64/booting.rst`, 4).

use core::fmt;

use smmuv3::address::{PhysAddr, PhysRange};

/// `Image` headers are placed relative to a multiple of this.
const BASE_ALIGN_BYTES: u64 = 2 << 20;
const HEADER_BYTES: u64 = 64;
const MAGIC: [u8; 4] = *b"ARM\x64";
/// Text offset and room for kernels from before the header had an image size (v3.17).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
const OLD_ROOM_BYTES: u64 = 32 << 20;

/// What an `Image` header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Bytes from a 2 MiB boundary to the image.
    pub text_offset_bytes: u64,
    /// Bytes from the image's start that it uses, at least those of the file.
    pub room_bytes: u64,
}

/// Why a kernel cannot be started.
#[derive(Clone, Copy, Debug)]
pub enum KernelError {
    /// The module is shorter than a header or has another magic.
    NotAnImage(PhysRange),
    /// The kernel is big-endian.
    BigEndian(PhysRange),
    /// No RAM is left where it fits; the number is the bytes that it needs.
    NoRoom(u64),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnImage(module) => write!(f, "the host's kernel at {module} is no arm64 Image"),
            Self::BigEndian(module) => write!(f, "the host's kernel at {module} is big-endian"),
            Self::NoRoom(bytes) => {
                write!(f, "no RAM is left for the host's kernel, which needs {bytes} bytes")
            }
        }
    }
}

impl Image {
    /// Reads the header of the `module` whose first bytes are `bytes`.
    pub fn read(module: PhysRange, bytes: &[u8]) -> Result<Self, KernelError> {
        let word = |at: usize| {
            bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|word| u64::from_le_bytes(*word))
        };
        let (Some(text_offset_bytes), Some(size), Some(flags)) = (word(8), word(16), word(24)) else {
            return Err(KernelError::NotAnImage(module));
        };
        if module.size_bytes() < HEADER_BYTES || bytes.get(56..60) != Some(&MAGIC) {
            return Err(KernelError::NotAnImage(module));
        }
        if flags & 1 != 0 {
            return Err(KernelError::BigEndian(module));
        }
        let file_bytes = module.size_bytes();
        Ok(if size == 0 {
            Self { text_offset_bytes: OLD_TEXT_OFFSET, room_bytes: file_bytes.saturating_add(OLD_ROOM_BYTES) }
        } else {
            Self { text_offset_bytes, room_bytes: size.max(file_bytes) }
        })
    }

    /// The room that the image takes when it stands at `start`, if it may stand there.
    pub fn room_at(&self, start: PhysAddr) -> Option<PhysRange> {
        let base = start.0.checked_sub(self.text_offset_bytes)?;
        PhysAddr(base).is_aligned(BASE_ALIGN_BYTES).then(|| PhysRange::new(start, self.room_bytes)).flatten()
    }
}
