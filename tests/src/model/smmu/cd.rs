//! What a CD means (IHI 0070, 5.4).

use super::super::stage1::Stage1Config;
use super::super::stage2::OUTPUT_BITS;
use super::Smmu;
use super::ste::Contexts;

/// What a CD says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// ASID.
    pub asid: u16,
    /// The walk below TTB0.
    pub walk: Stage1Config,
    /// R: stage-1 faults are recorded.
    pub record: bool,
    /// ASET: the ASID is not in the CPUs' set, so their broadcast invalidations leave it alone.
    pub private_asid: bool,
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1u64 << (high - low + 1)) - 1)
}

impl Smmu {
    /// Decodes a CD (5.4) that an STE with these `contexts` led to. `Err` says why it is invalid or ILLEGAL (C_BAD_CD).
    ///
    /// DW0: T0SZ \[5:0], TG0 \[7:6], EPD0 \[14], ENDI \[15], EPD1 \[30], V \[31], IPS \[34:32], AFFD \[35], TBI0 \[38], AA64 \[41], HD \[42],
    /// HA \[43], S \[44], R \[45], A \[46], ASET \[47], ASID \[63:48]. DW1: HAD0 \[1], TTB0 \[51:4].
    pub fn decode_cd(&self, cd: &[u64; 8], contexts: &Contexts) -> Result<Context, String> {
        let c = &self.config;
        let zero = cd[0];
        let is = |bit: u32| bits(zero, bit, bit) == 1;
        if !is(31) {
            return Err("V = 0".into());
        }
        if !is(41) {
            return Err("AA64 = 0".into());
        }
        if is(15) {
            return Err("ENDI = 1: big-endian tables".into());
        }
        if (is(42) || is(43)) && c.httu() == 0 {
            return Err("HA or HD without HTTU".into());
        }
        // 5.4, S: stalls that are not implemented, or that the STE forbids, or that are forced.
        if is(44) && (c.stall_model() == 0b01 || contexts.stalls_disabled)
            || !is(44) && c.stall_model() == 0b10
        {
            return Err("S does not fit STALL_MODEL or S1STALLD".into());
        }
        if !is(46) && c.term_model() {
            return Err("A = 0 with TERM_MODEL = 1".into());
        }
        let asid = bits(zero, 63, 48) as u16;
        if u32::from(asid) >> c.asid_bits() != 0 {
            return Err(format!("ASID {asid:#x} has more than {} bits", c.asid_bits()));
        }
        // The part above TTB0's input size belongs to TTB1, which is not part of this model.
        if !is(30) {
            return Err("EPD1 = 0: TTB1 is not part of this model".into());
        }
        let walks_off = is(14);
        let t0sz = bits(zero, 5, 0) as u32;
        let granule_log2 = match bits(zero, 7, 6) {
            0 => 12,
            1 => 16,
            2 => 14,
            _ if walks_off => 12,
            _ => return Err("TG0 is reserved".into()),
        };
        let Some(&ips) = OUTPUT_BITS.get(bits(zero, 34, 32) as usize) else {
            return Err("IPS is reserved".into());
        };
        let oa_bits = ips.min(c.oa_bits()).min(48);
        let mut walk = Stage1Config {
            granule_log2,
            ia_bits: 64 - t0sz.clamp(16, 39),
            oa_bits,
            root: cd[1] & 0x000f_ffff_ffff_fff0,
            walks_off,
            access_flag_fault_disabled: is(35),
            hierarchical: !(c.had() && bits(cd[1], 1, 1) == 1),
            top_byte_ignored: is(38),
        };
        // With EPD0 = 1 the fields of TTB0 do not matter.
        if !walks_off {
            if !c.has_granule(granule_log2) {
                return Err(format!("granule 2^{granule_log2} is not implemented"));
            }
            if !(16..=39).contains(&t0sz) {
                return Err(format!("T0SZ {t0sz} is not from 16 to 39"));
            }
            if walk.root >> oa_bits != 0 {
                return Err(format!("TTB0 {:#x} is above {oa_bits} bits", walk.root));
            }
            // DDI 0487, TTBR0_EL1: address bits below the table's size are RES0.
            walk.root &= !(walk.root_bytes().max(64) - 1);
        }
        Ok(Context { asid, walk, record: is(45), private_asid: is(47) })
    }
}
