//! SPSR_EL2: the state that the interrupted instruction would have left (DDI 0487, SPSR_EL2, and AArch32.ITAdvance()).

/// M\[4]: the exception was taken from AArch32 state, in which only EL0 can be.
const AARCH32: u64 = 1 << 4;
/// BTYPE, from AArch64 state.
const BTYPE: u64 = 3 << 10;
/// SS.
const SINGLE_STEP: u64 = 1 << 21;
/// IT, from AArch32 state: bits 7:2, and bits 1:0.
const IT_HIGH: u64 = 0x3f << 10;
const IT_LOW: u64 = 3 << 25;

/// After the interrupted instruction, which was carried out in its place: its single step is done, no branch comes before the next one, and
/// that is the next of an IT block, if it was in one.
#[inline]
pub const fn after_instruction(spsr: u64) -> u64 {
    let spsr = after_step(spsr);
    if spsr & AARCH32 == 0 { spsr & !BTYPE } else { after_it_instruction(spsr) }
}

/// Ends the single step of the interrupted instruction: a step exception comes before the next one.
#[inline]
pub const fn after_step(spsr: u64) -> u64 {
    spsr & !SINGLE_STEP
}

/// Goes on in an IT block. Outside of one, and in A32 state, IT is 0.
#[cold]
const fn after_it_instruction(spsr: u64) -> u64 {
    let it = (spsr & IT_HIGH) >> 8 | (spsr & IT_LOW) >> 25;
    let next = if it & 0b111 == 0 { 0 } else { it & 0xe0 | it << 1 & 0x1f };
    spsr & !(IT_HIGH | IT_LOW) | next << 8 & IT_HIGH | next << 25 & IT_LOW
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From EL0 in T32 state, with IT.
    fn thumb(it: u64) -> u64 {
        1 << 30 | 1 << 5 | AARCH32 | it >> 2 << 10 | (it & 3) << 25
    }

    #[test]
    fn an_aarch64_instruction_ends_its_step_and_its_branch() {
        assert_eq!(after_instruction(0x6000_03c5 | SINGLE_STEP | BTYPE), 0x6000_03c5);
        assert_eq!(after_step(0x6000_03c5 | SINGLE_STEP | BTYPE), 0x6000_03c5 | BTYPE);
    }

    #[test]
    fn an_it_block_goes_on_with_its_next_instruction() {
        // ITTEE EQ: its four instructions have the conditions EQ, EQ, NE, NE.
        let block = [0b0000_0111, 0b0000_1110, 0b0001_1100, 0b0001_1000, 0];
        for pair in block.windows(2) {
            assert_eq!(after_instruction(thumb(pair[0]) | SINGLE_STEP), thumb(pair[1]), "{:#010b}", pair[0]);
        }
        // IT GE, of one instruction; and none.
        assert_eq!(after_instruction(thumb(0b1010_1000)), thumb(0));
        assert_eq!(after_instruction(thumb(0)), thumb(0));
    }
}
