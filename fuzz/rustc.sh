#!/bin/sh
# Cargo's RUSTC_WORKSPACE_WRAPPER for fuzzing: rustc, with our own crates instrumented for
# libFuzzer, optimised, and every check on. What they depend on stays as the tests built it, so
# that a fuzz build after a test build takes seconds. Called by `cargo xtask fuzz`.
set -eu

# https://clang.llvm.org/docs/SanitizerCoverage.html; the pass is in every rustc.
case " $* " in
*" --crate-name agent "* | *" --crate-name agent_common "* | *" --crate-name agent_fuzz "*)
    exec "$@" -Copt-level=2 -Cdebug-assertions=on -Coverflow-checks=on \
        -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
