//! The structure block as a stream of tokens (5.4), read and written.

use super::{DeviceTreeError, Problem};

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Bytes of the header (5.2).
const HEADER_BYTES: usize = 40;
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;

/// One token; FDT_NOP is never given out.
#[derive(Clone, Copy)]
pub enum Token<'a> {
    /// A node begins.
    BeginNode(Node<'a>),
    /// A property of the node that began last.
    Property(Property<'a>),
    /// A node ends.
    EndNode,
    /// The structure block ends.
    End,
}

/// A property as it stands in the structure block.
#[derive(Clone, Copy)]
pub struct Property<'a> {
    /// Its name and all strings after it.
    names: &'a [u8],
    pub name_offset: u32,
    pub value: &'a [u8],
}

impl<'a> Property<'a> {
    /// Whether this is its name. Most names differ early, so the whole name is not looked for before.
    pub fn is(&self, name: &str) -> bool {
        let rest = self.names.strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        string_at(self.names).unwrap_or_default()
    }
}

/// A node, and where its properties and children are.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// Its name with the unit address; the root's is empty.
    pub name: &'a str,
    inside: Tokens<'a>,
}

impl<'a> Node<'a> {
    /// Whether it is in no other node.
    pub fn is_root(&self) -> bool {
        self.inside.depth == 1
    }

    /// The name without unit address.
    pub fn base_name(&self) -> &'a str {
        self.name.split_once('@').map_or(self.name, |(name, _)| name)
    }

    /// Its properties.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut tokens = self.inside;
        core::iter::from_fn(move || match tokens.next() {
            Ok(Token::Property(property)) => Some(property),
            _ => None,
        })
    }

    /// The value of a property.
    pub fn find(&self, name: &str) -> Option<&'a [u8]> {
        self.properties().find(|property| property.is(name)).map(|property| property.value)
    }

    /// The first string of a property's value.
    pub fn find_string(&self, name: &str) -> Option<&'a str> {
        string_at(self.find(name)?)
    }

    /// Whether its `status` lets it be used (2.3.4).
    pub fn is_okay(&self) -> bool {
        self.find_string("status").is_none_or(|status| matches!(status, "okay" | "ok"))
    }

    /// Its children.
    pub fn children(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let mut tokens = self.inside;
        core::iter::from_fn(move || {
            loop {
                match tokens.next() {
                    Ok(Token::Property(_)) => {}
                    Ok(Token::BeginNode(child)) => {
                        tokens.skip_node().ok()?;
                        return Some(child);
                    }
                    _ => return None,
                }
            }
        })
    }

    /// The first child with this name, not counting unit addresses.
    pub fn child(&self, name: &str) -> Option<Node<'a>> {
        self.children().find(|child| child.base_name() == name)
    }

    /// The strings in `compatible`.
    pub fn compatible(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.strings("compatible")
    }

    /// The strings of a property's value that are not empty; none if it is absent.
    pub fn strings(&self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let strings = self.find(name).unwrap_or_default().split(|byte| *byte == 0);
        strings.filter_map(|string| core::str::from_utf8(string).ok()).filter(|string| !string.is_empty())
    }
}

/// Reads the tokens of a tree. Whatever the bytes are, each step moves on and the last one is an error or the
/// end.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    tree: &'a [u8],
    structure: &'a [u8],
    strings: &'a [u8],
    /// Nodes that have begun and not ended.
    depth: usize,
}

impl<'a> Tokens<'a> {
    /// The tokens of `tree`, which has a header.
    pub fn new(tree: &'a [u8]) -> Result<Self, DeviceTreeError> {
        let block = |offset_at, size_at| {
            let offset = u32_at(tree, offset_at)? as usize;
            tree.get(offset..offset.checked_add(u32_at(tree, size_at)? as usize)?)
        };
        let structure = block(8, 36).ok_or(cut_off())?;
        Ok(Self { tree, structure, strings: block(12, 32).ok_or(cut_off())?, depth: 0 })
    }

    /// The strings block.
    pub fn strings(&self) -> &'a [u8] {
        self.strings
    }

    /// The memory reservation block, its terminator included (5.3).
    pub fn reservations(&self) -> Result<&'a [u8], DeviceTreeError> {
        let block =
            u32_at(self.tree, 16).and_then(|offset| self.tree.get(offset as usize..)).ok_or(cut_off())?;
        let entries = block.chunks_exact(16).position(|entry| entry.iter().all(|byte| *byte == 0));
        let size = entries.and_then(|before| before.checked_add(1)?.checked_mul(16));
        size.and_then(|size| block.get(..size)).ok_or(cut_off())
    }

    /// boot_cpuid_phys of the header.
    pub fn boot_cpu(&self) -> u32 {
        u32_at(self.tree, 28).unwrap_or(0)
    }

    /// The next token.
    pub fn next(&mut self) -> Result<Token<'a>, DeviceTreeError> {
        loop {
            match self.take_u32()? {
                NOP => {}
                BEGIN_NODE => {
                    let name = string_at(self.structure).ok_or(cut_off())?;
                    self.take(name.len() + 1)?;
                    self.depth += 1;
                    return Ok(Token::BeginNode(Node { name, inside: *self }));
                }
                END_NODE => {
                    self.depth = self.depth.saturating_sub(1);
                    return Ok(Token::EndNode);
                }
                END => return Ok(Token::End),
                PROP => {
                    let (size, name_offset) = (self.take_u32()? as usize, self.take_u32()?);
                    let names = self.strings.get(name_offset as usize..).ok_or(cut_off())?;
                    return Ok(Token::Property(Property { names, name_offset, value: self.take(size)? }));
                }
                _ => return Err(cut_off()),
            }
        }
    }

    /// Goes on after the end of the node that began last.
    pub fn skip_node(&mut self) -> Result<(), DeviceTreeError> {
        let mut open = 1_usize;
        while open > 0 {
            match self.next()? {
                Token::BeginNode(_) => open += 1,
                Token::EndNode => open -= 1,
                Token::Property(_) => {}
                Token::End => return Err(cut_off()),
            }
        }
        Ok(())
    }

    /// The root node, which must come next.
    pub fn root(mut self) -> Result<Node<'a>, DeviceTreeError> {
        match self.next()? {
            Token::BeginNode(root) => Ok(root),
            _ => Err(cut_off()),
        }
    }

    fn take_u32(&mut self) -> Result<u32, DeviceTreeError> {
        let word = u32_at(self.structure, 0).ok_or(cut_off())?;
        self.take(4)?;
        Ok(word)
    }

    /// Takes `size` bytes and the padding after them.
    fn take(&mut self, size: usize) -> Result<&'a [u8], DeviceTreeError> {
        let padded = size.checked_next_multiple_of(4).ok_or(cut_off())?;
        let (taken, rest) = self.structure.split_at_checked(padded).ok_or(cut_off())?;
        self.structure = rest;
        taken.get(..size).ok_or(cut_off())
    }
}

/// The error of a tree that ends early, or whose blocks are not where its header says.
pub fn cut_off() -> DeviceTreeError {
    DeviceTreeError::new("/", "", Problem::NoTree)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn string_at(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(bytes.get(..end)?).ok()
}

/// Writes a tree into a buffer.
pub struct Writer<'b> {
    out: &'b mut [u8],
    at: usize,
    structure: usize,
}

impl<'b> Writer<'b> {
    /// Begins a tree with these memory reservations.
    pub fn new(out: &'b mut [u8], reservations: &[u8]) -> Result<Self, DeviceTreeError> {
        let mut writer = Self { out, at: HEADER_BYTES, structure: 0 };
        writer.bytes(reservations)?;
        writer.structure = writer.at;
        Ok(writer)
    }

    /// Begins a node.
    pub fn begin_node(&mut self, name: &str) -> Result<(), DeviceTreeError> {
        self.u32(BEGIN_NODE)?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad()
    }

    /// Writes a property whose value is the parts, one after the other.
    pub fn property(&mut self, name_offset: u32, parts: &[&[u8]]) -> Result<(), DeviceTreeError> {
        let size: usize = parts.iter().map(|part| part.len()).sum();
        self.u32(PROP)?;
        self.u32(u32::try_from(size).map_err(|_| self.no_space())?)?;
        self.u32(name_offset)?;
        for part in parts {
            self.bytes(part)?;
        }
        self.pad()
    }

    /// Ends a node.
    pub fn end_node(&mut self) -> Result<(), DeviceTreeError> {
        self.u32(END_NODE)
    }

    /// Ends the tree with a strings block made of the parts, and returns its size in bytes.
    pub fn finish<'s>(
        mut self,
        strings: impl Iterator<Item = &'s [u8]>,
        boot_cpu: u32,
    ) -> Result<usize, DeviceTreeError> {
        self.u32(END)?;
        let strings_at = self.at;
        for part in strings {
            self.bytes(part)?;
        }
        let total = self.at;
        let words = [
            0xd00d_feed,
            total,
            self.structure,
            strings_at,
            HEADER_BYTES,
            VERSION as usize,
            LAST_COMPATIBLE_VERSION as usize,
            boot_cpu as usize,
            total - strings_at,
            strings_at - self.structure,
        ];
        self.at = 0;
        for word in words {
            self.u32(u32::try_from(word).map_err(|_| self.no_space())?)?;
        }
        Ok(total)
    }

    fn no_space(&self) -> DeviceTreeError {
        DeviceTreeError::new("/", "", Problem::NoSpace { buffer_bytes: self.out.len() })
    }

    fn u32(&mut self, word: u32) -> Result<(), DeviceTreeError> {
        self.bytes(&word.to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), DeviceTreeError> {
        let end = self.at.checked_add(bytes.len()).ok_or(self.no_space())?;
        let error = self.no_space();
        self.out.get_mut(self.at..end).ok_or(error)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    fn pad(&mut self) -> Result<(), DeviceTreeError> {
        let padding = self.at.wrapping_neg() & 3;
        self.bytes([0; 3].get(..padding).unwrap_or_default())
    }
}
