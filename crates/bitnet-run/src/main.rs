//! `bitnet-run`: prompt in, text out.

fn main() -> std::process::ExitCode {
    bitnet_cli::set_commit(bitnet_commit::commit!());
    bitnet_cli::main(|args, out, err| bitnet_run::run(args, out, err))
}
