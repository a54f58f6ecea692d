//! What can be wrong with a device tree.

use core::fmt;
use dtoolkit::error::FdtParseError;

/// A copy of a node's or property's name: its first 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; 48],
    len: u8,
}

impl Name {
    /// Copies a name; the root node's, which is empty, becomes `/`.
    pub fn new(name: &str) -> Self {
        let name = if name.is_empty() { "/" } else { name };
        let mut copy = Self { bytes: [0; 48], len: 0 };
        for (to, from) in copy.bytes.iter_mut().zip(name.bytes()) {
            *to = if from.is_ascii_graphic() { from } else { b'?' };
            copy.len += 1;
        }
        copy
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The bytes are not a device tree, or not one of version 17.
    Malformed(FdtParseError),
    /// The bytes end before the tree does, or do not begin with one.
    NoTree,
    /// The node or the property is not there.
    Missing,
    /// The property's length in bytes is not one that it can have.
    Length(usize),
    /// The value is out of its range, or overlaps another, or the range it names is empty or wraps.
    Value(u64),
    /// The node's address cannot be translated through the buses above it.
    Untranslatable,
    /// There are more of them than the hypervisor has room for.
    TooMany {
        /// How many it has room for.
        limit: usize,
    },
    /// Nodes are nested deeper than the hypervisor follows.
    TooDeep {
        /// How deep it follows.
        limit: usize,
    },
    /// An SMMU with a `status` that is not okay cannot be owned, and one that is not owned lets every DMA
    /// through.
    Disabled,
    /// The host's tree does not fit into the buffer of this many bytes.
    NoSpace {
        /// Size of the buffer in bytes.
        buffer_bytes: usize,
    },
}

/// Why a device tree could not be used: where it is wrong and how. One sentence when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceTreeError {
    /// The node.
    pub node: Name,
    /// The property, or a node below `node` that is missing; empty when the node as a whole is meant.
    pub property: &'static str,
    /// What is wrong with it.
    pub problem: Problem,
}

impl DeviceTreeError {
    pub(super) fn new(node: &str, property: &'static str, problem: Problem) -> Self {
        Self { node: Name::new(node), property, problem }
    }
}

impl From<FdtParseError> for DeviceTreeError {
    fn from(error: FdtParseError) -> Self {
        Self::new("/", "", Problem::Malformed(error))
    }
}

impl fmt::Display for DeviceTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device tree: node {}", self.node.as_str())?;
        if !self.property.is_empty() {
            write!(f, ", {}", self.property)?;
        }
        match &self.problem {
            Problem::Malformed(error) => write!(f, ": malformed: {error}"),
            Problem::NoTree => f.write_str(": there is no device tree, or it is cut off"),
            Problem::Missing => f.write_str(" is missing"),
            Problem::Length(bytes) => write!(f, " has {bytes} bytes, which is not a length it can have"),
            Problem::Value(value) => write!(f, " has the value {value:#x}, which it cannot have"),
            Problem::Untranslatable => {
                f.write_str(": the address cannot be translated through the buses above")
            }
            Problem::TooMany { limit } => write!(f, ": more than {limit} of these are not supported"),
            Problem::TooDeep { limit } => write!(f, " is nested deeper than {limit} levels"),
            Problem::Disabled => {
                f.write_str(" is disabled, but an SMMU that is not owned lets every DMA through")
            }
            Problem::NoSpace { buffer_bytes } => {
                write!(f, ": the host's tree does not fit into {buffer_bytes} bytes")
            }
        }
    }
}

impl core::error::Error for DeviceTreeError {}
