//! Keeps the memory of this process, which holds keys and tokens, to itself.
//!
//! Owns: what the kernel is told about it. Must not know: what is secret. Driven by: `cli`, before anything is read.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets nobody but root read or trace this process, and no core of it be written, also by a core handler
/// (prctl(2), `PR_SET_DUMPABLE`). A program that it starts begins without that.
///
/// # Errors
/// The system refuses: this process is as it was.
pub(crate) fn keep_private() -> nix::Result<()> {
    prctl::set_dumpable(false)
}

/// Asks for no core as well, as the second of two bolts. What this process starts inherits it and may raise it.
///
/// # Errors
/// The system refuses: the limit stays.
pub(crate) fn no_core() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process of this test is another one: dumps of the tests of a crate are nobody's secret.
    #[test]
    fn a_private_process_is_not_dumpable_and_writes_no_core() {
        const MARK: &str = "GOSSAMER_TEST_PRIVATE";
        if std::env::var_os(MARK).is_some() {
            keep_private().expect("allowed");
            no_core().expect("allowed");
            assert!(!prctl::get_dumpable().expect("known"));
            assert_eq!(getrlimit(Resource::RLIMIT_CORE).expect("known").0, 0);
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().expect("a path"));
        again.args(["--exact", "memory::tests::a_private_process_is_not_dumpable_and_writes_no_core"]);
        assert!(again.env(MARK, "1").status().expect("runs").success());
    }
}
