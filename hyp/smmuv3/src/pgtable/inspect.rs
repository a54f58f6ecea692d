//! A table read from one end to the other, by whoever checks it.

use super::{Attributes, Blocks, PageTable, descriptor};
use crate::address::PhysAddr;
use crate::memory::Memory;

/// What [`PageTable::inspect`] comes upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A table below the root, after everything in it.
    Table {
        /// Where it is.
        table: PhysAddr,
        /// How many valid entries the descriptor above it says that it has.
        says: u64,
        /// How many it has.
        holds: u64,
        /// Whether what the descriptor says of its leaves, that they may form a block, is right.
        uniform: bool,
    },
    /// A leaf.
    Leaf {
        /// The first input address that it translates.
        input: u64,
        /// Bytes that it translates.
        size_bytes: u64,
        /// Where the first one leads.
        output: PhysAddr,
        /// Its attributes.
        attributes: Attributes,
    },
}

/// Who looks at a table, and what stops the looking.
type Visit<'a, E> = &'a mut dyn FnMut(Found) -> Result<(), E>;

impl PageTable {
    /// Calls `visit` with every leaf, in the order of input addresses, and with every table below the root. Bounded by the size of the
    /// table: four levels at most, whatever is in memory. Nobody changes the table meanwhile.
    ///
    /// # Errors
    /// What `visit` answers.
    pub fn inspect<M: Memory, E>(&self, memory: &M, visit: Visit<'_, E>) -> Result<(), E> {
        let geometry = self.geometry();
        self.inspect_level(memory, self.root(), geometry.start_level(), geometry.root_entries(), 0, visit)?;
        Ok(())
    }

    /// One table and those below it: how many entries are valid, and whether they are one run of leaves.
    fn inspect_level<M: Memory, E>(
        &self,
        memory: &M,
        table: PhysAddr,
        level: u8,
        entries: u64,
        first: u64,
        visit: Visit<'_, E>,
    ) -> Result<(u64, bool), E> {
        let size_bytes = self.geometry().level_bytes(level);
        let mut holds = 0u64;
        let mut uniform = true;
        let mut run = None;
        for index in 0..entries {
            let found = memory.read_u64(table.offset(index.wrapping_mul(8)));
            if found & descriptor::VALID == 0 {
                continue;
            }
            holds = holds.wrapping_add(1);
            let offset = index.wrapping_mul(size_bytes);
            let input = first.wrapping_add(offset);
            let output = descriptor::address(found);
            if descriptor::is_table(found, level) {
                uniform = false;
                let info = descriptor::TableInfo::of(found);
                let below = 1u64.wrapping_shl(u32::from(self.geometry().stride()));
                let (holds, is_run) =
                    self.inspect_level(memory, output, level.wrapping_add(1), below, input, visit)?;
                // Nobody asks it where no block may stand.
                let may_join = self.blocks() != Blocks::Never && level >= self.geometry().first_block_level();
                let uniform = is_run || info.mixed || !may_join;
                visit(Found::Table { table: output, says: info.count, holds, uniform })?;
                continue;
            }
            let attributes = Attributes::from_bits(found);
            // Where a block of all of them would begin.
            let start = (output.0.wrapping_sub(offset), attributes);
            uniform &= *run.get_or_insert(start) == start;
            visit(Found::Leaf { input, size_bytes, output, attributes })?;
        }
        Ok((holds, uniform))
    }
}
