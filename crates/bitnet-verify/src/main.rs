//! The program `bitnet-verify`; all of it is in the library.

fn main() -> std::process::ExitCode {
    bitnet_cli::set_commit(bitnet_commit::commit!());
    bitnet_cli::main(bitnet_verify::run)
}
