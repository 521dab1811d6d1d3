//! `bitnet-convert` as an executable of this package, so that tests can start and kill it: cargo
//! tells a package's tests where that package's executables are, and no others.

fn main() -> std::process::ExitCode {
    bitnet_cli::main(|args, out, err| bitnet_convert::run(args, out, err))
}
