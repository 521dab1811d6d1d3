//! `bitnet-verify` as an executable of this package: `scripts/verify-action` starts one.

fn main() -> std::process::ExitCode {
    bitnet_cli::main(|args, out, err| bitnet_verify::run(args, out, err))
}
