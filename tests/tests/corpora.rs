//! Every target of the fuzzers with the inputs that are kept in `fuzz/`: those that together reach what is known to be reached, and those that once
//! found something.

use std::fs;
use std::path::{Path, PathBuf};
use tests::fuzz::TARGETS;

/// Inputs of a target in a folder of `fuzz/`.
fn inputs(folder: &str, target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder).join(target);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Runs a target with all its inputs; how many there were.
fn replay(target: &str) -> usize {
    let run = TARGETS.iter().find(|(name, _)| *name == target).expect("there is such a target").1;
    let inputs: Vec<PathBuf> =
        ["corpus", "regressions"].iter().flat_map(|folder| inputs(folder, target)).collect();
    for input in &inputs {
        let bytes = fs::read(input).expect("the input can be read");
        // Which one it is stands before what the target says.
        eprintln!("{}", input.display());
        run(&bytes);
    }
    inputs.len()
}

macro_rules! targets {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                assert_ne!(replay(stringify!($target)), 0, "there are no inputs");
            }
        )*

        #[test]
        fn every_target_is_replayed_and_has_a_program() {
            let here = [$(stringify!($target)),*];
            assert_eq!(here.to_vec(), TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
            for target in here {
                let program = format!("../fuzz/fuzz_targets/{target}.rs");
                let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(program)).unwrap();
                assert!(text.contains(&format!("tests::fuzz::{target}(bytes)")), "{text}");
            }
        }
    };
}

targets! {
    devicetree
    emulated_smmu
    faults
    host
    hypercalls
    invalidation_array
    its
    owner_commands
    page_tables
    pci_buses
    ranges
    redistributors
}
