//! The `gossamer` program.

fn main() -> std::process::ExitCode {
    gossamer::cli::main()
}
