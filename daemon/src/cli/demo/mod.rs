//! stub
use super::failure::Failure;
pub(super) async fn run(_d: &super::args::Demo) -> Result<std::process::ExitCode, Failure> {
    Err(Failure::failed("stub"))
}
