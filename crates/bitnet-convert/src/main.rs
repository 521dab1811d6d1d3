//! The executable; everything is in the library.

fn main() -> std::process::ExitCode {
    bitnet_cli::set_commit(bitnet_commit::commit!());
    bitnet_cli::main(|args, out, err| bitnet_convert::run(args, out, err))
}
