//! The functions of an image, what each calls, and whose addresses each takes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Instruction, Opcode, Operand};

/// A function, or what is between two labels of an assembler file.
#[derive(Debug)]
struct Function {
    name: String,
    start: u64,
    end: u64,
    calls: Vec<Call>,
    /// Functions whose address it makes.
    taken: BTreeSet<usize>,
    /// It has a call of a function whose address is in a register.
    is_indirect: bool,
}

/// A branch of a function to another.
#[derive(Clone, Debug)]
pub struct Call {
    /// The function that it goes to.
    pub callee: usize,
    /// Addresses that were put into registers since the branch before it; none where something branches to after that, and may have put
    /// others there.
    pub arguments: Vec<u64>,
}

/// All functions of an image.
#[derive(Debug)]
pub struct Code {
    /// In the order of their addresses.
    functions: Vec<Function>,
    /// Functions whose address is in data.
    in_data: BTreeSet<usize>,
}

impl Code {
    /// Reads and disassembles an ELF.
    ///
    /// # Errors
    ///
    /// It is none, or has no code or symbols, or code that is in no function.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let file = ElfFile64::<Endianness>::parse(bytes).context("the image is no ELF")?;
        let text = file.section_by_name(".text").context("the image has no .text")?;
        let (start, data) = (text.address(), text.data()?);
        let end = start + data.len() as u64;
        let mut names = BTreeMap::new();
        let mut sizes = BTreeMap::new();
        for symbol in file.symbols().filter(|symbol| (start..end).contains(&symbol.address())) {
            // Mapping symbols ($x, $d) are no names.
            let Ok(name) = symbol.name() else { continue };
            if name.is_empty() || name.starts_with('$') {
                continue;
            }
            let is_function = symbol.kind() == SymbolKind::Text && symbol.size() != 0;
            if is_function || !names.contains_key(&symbol.address()) {
                names.insert(symbol.address(), format!("{:#}", rustc_demangle::demangle(name)));
            }
            if is_function {
                sizes.insert(symbol.address(), symbol.size());
            }
        }
        // A label in the middle of a function of the compiler's is none of its own.
        let mut covered = 0;
        names.retain(|at, _| match sizes.get(at) {
            Some(size) => {
                covered = at + size;
                true
            }
            None => *at >= covered,
        });
        let starts: Vec<u64> = names.keys().copied().collect();
        let ends = starts.iter().skip(1).copied().chain([end]);
        let functions = names.iter().zip(ends).map(|((at, name), end)| Function {
            name: name.clone(),
            start: *at,
            end: sizes.get(at).map_or(end, |size| at + size),
            calls: Vec::new(),
            taken: BTreeSet::new(),
            is_indirect: false,
        });
        let mut code = Self { functions: functions.collect(), in_data: BTreeSet::new() };
        ensure!(!code.functions.is_empty(), "the image has no symbols");
        for index in 0..code.functions.len() {
            code.disassemble(index, start, data)?;
        }
        code.read_data(&file)?;
        Ok(code)
    }

    /// Words of data, and addends of relocations, that are addresses of functions.
    fn read_data(&mut self, file: &ElfFile64<'_, Endianness>) -> Result<()> {
        let sections = file.sections().filter(|section| {
            matches!(
                section.kind(),
                SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString
            ) || section.name() == Ok(".rela.dyn")
                || section.name() == Ok(".got")
        });
        for section in sections {
            for word in section.data()?.chunks_exact(8) {
                let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
                self.in_data.extend(self.starting_at(word));
            }
        }
        Ok(())
    }

    fn disassemble(&mut self, index: usize, start: u64, data: &[u8]) -> Result<()> {
        let decoder = InstDecoder::default();
        let (first, end) = (self.functions[index].start, self.functions[index].end);
        let (mut calls, mut taken, mut is_indirect) = (Vec::<Call>::new(), BTreeSet::new(), false);
        // Pages that ADRP puts into each register, on whatever path.
        let mut pages: [Vec<u64>; 32] = Default::default();
        // Addresses that argument registers have since the last branch, and where they got them.
        let mut arguments: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
        let (mut targets, mut argued) = (BTreeSet::new(), Vec::<RangeInclusive<u64>>::new());
        for at in (first..end).step_by(4) {
            let offset = (at - start) as usize;
            let word = data.get(offset..offset + 4).context("a function is not in .text")?;
            let mut instruction = Instruction::default();
            // Constants between functions of an assembler file are no instructions.
            if decoder.decode_into(&mut instruction, &mut U8Reader::new(word)).is_err() {
                continue;
            }
            let Instruction { opcode, operands } = instruction;
            let offset = operands.iter().find_map(|operand| match operand {
                Operand::PCOffset(offset) => Some(*offset),
                _ => None,
            });
            let target = at.wrapping_add_signed(offset.unwrap_or(0));
            match (opcode, operands) {
                (Opcode::ADRP, [Operand::Register(_, register), ..]) => {
                    let page = (at & !0xfff).wrapping_add_signed(offset.unwrap_or(0));
                    pages[usize::from(register)].push(page);
                }
                (Opcode::ADR, [Operand::Register(_, to), ..]) => {
                    taken.extend(self.starting_at(target));
                    arguments.insert(to, (at, target));
                }
                (
                    Opcode::ADD,
                    [
                        Operand::RegisterOrSP(_, to),
                        Operand::RegisterOrSP(_, from),
                        Operand::Immediate(low),
                        _,
                    ],
                ) => {
                    let mut addresses = pages[usize::from(from)].iter().map(|page| page + u64::from(low));
                    taken.extend(addresses.clone().filter_map(|address| self.starting_at(address)));
                    if let Some(address) = addresses.next_back() {
                        arguments.insert(to, (at, address));
                    }
                }
                (Opcode::BLR | Opcode::BR, _) => {
                    is_indirect = true;
                    arguments.clear();
                }
                (Opcode::RET, _) => arguments.clear(),
                (
                    Opcode::B
                    | Opcode::BL
                    | Opcode::Bcc(_)
                    | Opcode::CBZ
                    | Opcode::CBNZ
                    | Opcode::TBZ
                    | Opcode::TBNZ,
                    _,
                ) => {
                    if (first..end).contains(&target) {
                        targets.insert(target);
                    } else {
                        let callee = self.containing(target).with_context(|| {
                            format!("{at:#x} branches to {target:#x}, which is in no function")
                        })?;
                        let first = arguments.values().map(|(set, _)| set + 4).min().unwrap_or(at);
                        argued.push(first..=at);
                        let arguments = arguments.values().map(|(_, address)| *address).collect();
                        calls.push(Call { callee, arguments });
                    }
                    arguments.clear();
                }
                _ => {}
            }
        }
        for (call, range) in calls.iter_mut().zip(argued) {
            if targets.range(range).next().is_some() {
                call.arguments.clear();
            }
        }
        let function = &mut self.functions[index];
        (function.calls, function.taken, function.is_indirect) = (calls, taken, is_indirect);
        Ok(())
    }

    fn starting_at(&self, address: u64) -> Option<usize> {
        self.functions.binary_search_by_key(&address, |function| function.start).ok()
    }

    fn containing(&self, address: u64) -> Option<usize> {
        let index = self.functions.partition_point(|function| function.start <= address).checked_sub(1)?;
        (address < self.functions[index].end).then_some(index)
    }

    /// The function of this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.functions.iter().position(|function| function.name == name)
    }

    /// The name of a function.
    pub fn name(&self, function: usize) -> &str {
        &self.functions[function].name
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Where a function branches to others.
    pub fn calls(&self, function: usize) -> &[Call] {
        &self.functions[function].calls
    }

    /// Functions whose address a function makes.
    pub fn taken(&self, function: usize) -> &BTreeSet<usize> {
        &self.functions[function].taken
    }

    /// Whether a function branches to an address in a register.
    pub fn is_indirect(&self, function: usize) -> bool {
        self.functions[function].is_indirect
    }

    /// Functions whose address is in data.
    pub const fn in_data(&self) -> &BTreeSet<usize> {
        &self.in_data
    }
}
