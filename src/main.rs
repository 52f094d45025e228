//! Parse, hand over to [`visaged::cli`].

fn main() -> std::process::ExitCode {
    visaged::cli::main()
}
