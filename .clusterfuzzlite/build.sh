#!/bin/bash -eu
# Builds every target of fuzz/ for ClusterFuzzLite, from the top of the tree: programs, inputs and options in $OUT.
#
# What it does there can be tried anywhere: FUZZ_FLAGS='--sanitizer none' RUSTUP_TOOLCHAIN=stable WORK=... OUT=... .clusterfuzzlite/build.sh

# rust-toolchain.toml asks for the stable one, which has no sanitizers.
export RUSTUP_TOOLCHAIN=${RUSTUP_TOOLCHAIN:-nightly}
read -ra flags <<< "${FUZZ_FLAGS:-}"
cargo fuzz build "${flags[@]}" --target-dir "$WORK/fuzz"

for source in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$source" .rs)
    cp "$WORK/fuzz/$(uname -m)-unknown-linux-gnu/release/$target" "$OUT/"
    inputs=()
    for directory in "fuzz/corpus/$target" "fuzz/regressions/$target"; do
        [ ! -d "$directory" ] || inputs+=("$directory")
    done
    [ ${#inputs[@]} -eq 0 ] || zip --quiet --recurse-paths "$OUT/${target}_seed_corpus.zip" "${inputs[@]}"
    # As long as `cargo xtask fuzz` makes them.
    printf '[libfuzzer]\nmax_len = 16384\n' > "$OUT/$target.options"
done
