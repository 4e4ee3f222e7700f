//! Planted bugs: patches applied to a temporary worktree, so that a check can be seen to fail.
//!
//! Owns: the worktrees. Must not know: what a patch breaks. Driven by: checks that run sources of the tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A copy of the committed tree; removed when dropped.
#[derive(Debug)]
pub struct Worktree {
    root: PathBuf,
    scratch: TempDir,
}

impl Worktree {
    /// Checks out what is committed at `root` and applies `tests/planted/<patch>`.
    ///
    /// # Errors
    /// git fails, or the patch does not fit the tree and needs to be made anew.
    pub fn with_patch(root: &Path, patch: &str) -> Result<Self> {
        let worktree = Self::new(root)?;
        worktree.plant(patch)?;
        Ok(worktree)
    }

    /// Checks out what is committed at `root`.
    ///
    /// # Errors
    /// git fails.
    pub fn new(root: &Path) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("gsm-planted").tempdir()?;
        let worktree = Self { root: root.to_owned(), scratch };
        git(root, &["worktree", "add", "--quiet", "--detach", &text(&worktree.path())?, "HEAD"])?;
        Ok(worktree)
    }

    /// Applies `tests/planted/<patch>`.
    ///
    /// # Errors
    /// The patch does not fit the tree and needs to be made anew.
    pub fn plant(&self, patch: &str) -> Result<()> {
        let file = self.root.join("tests/planted").join(patch);
        git(&self.path(), &["apply", &text(&file)?]).with_context(|| format!("planting {patch}"))
    }

    /// Takes every planted bug out again.
    ///
    /// # Errors
    /// git fails.
    pub fn restore(&self) -> Result<()> {
        git(&self.path(), &["checkout", "--quiet", "."])
    }

    /// Returns the root of the copy.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("tree")
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let _ =
            text(&self.path()).and_then(|path| git(&self.root, &["worktree", "remove", "--force", &path]));
    }
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).context("a path that is UTF-8")
}

fn git(directory: &Path, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new("git").current_dir(directory).args(arguments).output().context("running git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
