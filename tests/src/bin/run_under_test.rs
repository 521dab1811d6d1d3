//! `bitnet-run` as an executable of this package: `scripts/bench-peers` starts one.

fn main() -> std::process::ExitCode {
    bitnet_cli::main(|args, out, err| bitnet_run::run(args, out, err))
}
