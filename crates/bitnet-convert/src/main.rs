//! The executable; everything is in the library.

fn main() -> std::process::ExitCode {
    bitnet_cli::main(|args, out, err| bitnet_convert::run(args, out, err))
}
