//! Recordings of attacks that found something once (`tests/regressions`), on the model machine, with both oracles after each step.

use std::path::Path;

use host_shim::hostile::{Knowledge, Setting, steps};
use tests::bench::{Bench, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

fn setting(name: &str) -> Setting {
    Setting::of_name(name).unwrap_or_else(|| panic!("{name} says no machine"))
}

#[test]
fn a_name_says_what_is_left_out() {
    let rules = |name| {
        let Setting { shape, rules } = setting(name);
        (shape.smmus, rules.calm, rules.calls)
    };
    assert_eq!(rules("calls-of-a-calm-s1-host-s3-c1.steps"), (3, false, false));
    assert_eq!(rules("x-s3-c1-calm.steps"), (3, true, false));
    assert_eq!(rules("x-s2-c4-calm-calls.steps"), (2, true, true));
}

#[test]
fn what_was_found_once_is_not_found_again() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut replayed = 0;
    for entry in std::fs::read_dir(directory).expect("there are recordings") {
        let path = entry.expect("the directory can be read").path();
        let Some(name) =
            path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".steps"))
        else {
            continue;
        };
        let bytes = std::fs::read(&path).expect("a recording can be read");
        let Setting { shape, rules } = setting(name);
        let shape = Shape::of(shape.smmus.into(), SmmuConfig::qemu());
        let bench = Bench::boot(&shape).expect("the machine boots");
        let mut known = Knowledge::of(&bench);
        for (n, step) in steps(&bytes).enumerate() {
            let Some(action) = rules.action(&step, &known) else { continue };
            let (_, finding) = known.act(&bench, &action);
            let judged = finding.map(|finding| finding.as_str().to_owned());
            let found = judged.or_else(|| oracle::check_state(&bench).err());
            if let Some(text) = found {
                panic!("{name}, step {n}, {action:x?}: {text}");
            }
        }
        replayed += 1;
    }
    assert_ne!(replayed, 0, "no recording was found");
}
