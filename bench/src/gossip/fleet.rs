//! N processes of one system, a namespace each: started, stopped, and heard.
//!
//! Owns: the processes, and what each says about the others. Must not know: commands, formats; a [`Product`] does.
//! Driven by: the measurements.
//!
//! Both systems say the same kinds of things, so that each measurement is written once and cannot favour one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gossamer_tests::netns::{Namespace, Star};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// Things said that wait to be looked at: all joins of 150 members at once are 22,500. Readers wait when it is full.
const WAITING: usize = 65_536;

/// How long a member may take to end when told to.
const LEAVE: Duration = Duration::from_secs(30);

/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// What a process has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// How others may call the one who speaks.
    IAm(String),
    /// A member is there.
    Up(String),
    /// A member is not there any more.
    Down(String),
    /// A change of some member is visible: a record, an event.
    Change(String),
}

/// What a process has said, when, and who it was.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    at: Instant,
    member: usize,
    life: u32,
    said: Said,
}

/// What was heard, in terms of numbers of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// `observer` sees a member.
    Up(usize),
    /// `observer` has lost a member.
    Down(usize),
    /// A change is visible at the observer.
    Change(String),
}

/// Where the reader of one process puts what it hears.
#[derive(Clone, Debug)]
pub(super) struct Ear {
    to: mpsc::Sender<Heard>,
    member: usize,
    life: u32,
}

impl Ear {
    /// Passes on; the time is this moment. Returns false when nobody listens any more.
    pub(super) async fn hear(&self, said: Said) -> bool {
        let heard = Heard { at: Instant::now(), member: self.member, life: self.life, said };
        self.to.send(heard).await.is_ok()
    }
}

/// Reads what a process says until its end.
pub(super) type Reader = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A system that is measured.
pub(super) trait Product: Sync {
    /// What it is called in results.
    const SYSTEM: &'static str;

    /// Starts the process of a member; called in its namespace.
    ///
    /// # Errors
    /// The system refuses.
    fn spawn(&self, member: usize, ear: Ear) -> Result<(Child, Reader)>;
}

/// All members of a system.
pub(super) struct Fleet<P> {
    /// The system.
    pub(super) product: P,
    star: Arc<Star>,
    /// The machine of the first member; the others follow at the same distance.
    first: usize,
    step: usize,
    members: Vec<Member>,
    names: BTreeMap<String, usize>,
    /// What named a member that was not known yet.
    pending: Vec<Heard>,
    news: VecDeque<(Instant, usize, News)>,
    downs: Vec<(usize, usize)>,
    ear: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    readers: JoinSet<()>,
}

#[derive(Default)]
struct Member {
    child: Option<Child>,
    life: u32,
    view: BTreeSet<usize>,
}

impl<P> fmt::Debug for Fleet<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

impl<P: Product> Fleet<P> {
    /// Makes a fleet on every `step`-th machine from `first` on, nothing started.
    pub(super) fn new(product: P, star: Arc<Star>, first: usize, step: usize) -> Self {
        let count = star.machines().len().saturating_sub(first).div_ceil(step);
        let (ear, heard) = mpsc::channel(WAITING);
        Self {
            product,
            star,
            first,
            step,
            members: (0..count).map(|_| Member::default()).collect(),
            names: (0..count).map(|member| (name(member), member)).collect(),
            pending: Vec::new(),
            news: VecDeque::new(),
            downs: Vec::new(),
            ear,
            heard,
            readers: JoinSet::new(),
        }
    }

    /// Returns how many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns the namespace of a member.
    pub(super) fn namespace(&self, member: usize) -> &Namespace {
        &self.star.machines()[self.first + member * self.step]
    }

    /// Starts a member; returns when its process was about to be made.
    ///
    /// # Errors
    /// It runs already, or the system refuses.
    pub(super) fn start(&mut self, member: usize) -> Result<Instant> {
        let entry = self.members.get_mut(member).context("no such member")?;
        if entry.child.is_some() {
            bail!("{} {} runs already", P::SYSTEM, name(member));
        }
        entry.life += 1;
        entry.view = BTreeSet::from([member]);
        let ear = Ear { to: self.ear.clone(), member, life: entry.life };
        let begun = Instant::now();
        let product = &self.product;
        let machine = &self.star.machines()[self.first + member * self.step];
        let (child, reader) = machine.enter(|| product.spawn(member, ear))??;
        entry.child = Some(child);
        self.readers.spawn(reader);
        while self.readers.try_join_next().is_some() {}
        Ok(begun)
    }

    /// Kills a member with SIGKILL; returns when.
    ///
    /// # Errors
    /// It does not run.
    pub(super) fn kill(&mut self, member: usize) -> Result<Instant> {
        let entry = self.members.get_mut(member).context("no such member")?;
        let mut child = entry.child.take().with_context(|| format!("{} does not run", name(member)))?;
        let at = Instant::now();
        child.kill()?;
        child.wait()?;
        entry.life += 1;
        entry.view.clear();
        Ok(at)
    }

    /// Waits until a member that was told to stop has ended.
    ///
    /// # Errors
    /// It does not run, or has not ended in time.
    pub(super) async fn ended(&mut self, member: usize) -> Result<()> {
        let end = Instant::now() + LEAVE;
        let entry = self.members.get_mut(member).context("no such member")?;
        let child = entry.child.as_mut().with_context(|| format!("{} does not run", name(member)))?;
        while child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("{} {} does not end", P::SYSTEM, name(member));
            }
            sleep(LOOK).await;
        }
        entry.child = None;
        entry.life += 1;
        Ok(())
    }

    /// Kills all that run.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn kill_all(&mut self) -> Result<()> {
        for member in 0..self.len() {
            if self.members[member].child.is_some() {
                self.kill(member)?;
            }
        }
        Ok(())
    }

    /// Sends a signal to a member.
    ///
    /// # Errors
    /// It does not run.
    pub(super) fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid(member)?), signal)?)
    }

    /// Returns the process id of a member.
    ///
    /// # Errors
    /// It does not run.
    pub(super) fn pid(&self, member: usize) -> Result<i32> {
        let child = self.members.get(member).and_then(|member| member.child.as_ref());
        Ok(i32::try_from(child.with_context(|| format!("{} does not run", name(member)))?.id())?)
    }

    /// Returns how many members a member sees, itself included.
    pub(super) fn sees(&self, member: usize) -> usize {
        self.members[member].view.len()
    }

    /// Returns whether all see all.
    pub(super) fn is_complete(&self) -> bool {
        self.members.iter().all(|member| member.view.len() == self.members.len())
    }

    /// Forgets what was said and not looked at; views are kept up to date.
    pub(super) fn drain(&mut self) {
        while let Ok(heard) = self.heard.try_recv() {
            self.take(heard);
        }
        self.news.clear();
    }

    /// Returns who lost whom since the last call, each once per loss.
    pub(super) fn take_downs(&mut self) -> Vec<(usize, usize)> {
        self.drain();
        std::mem::take(&mut self.downs)
    }

    /// Returns the next news and who has it; `None` at `end`.
    pub(super) async fn next(&mut self, end: Instant) -> Option<(Instant, usize, News)> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Some(news);
            }
            let heard = timeout_at(end, self.heard.recv()).await.ok().flatten()?;
            self.take(heard);
        }
    }

    /// Waits until all see all; returns when the last did.
    ///
    /// # Errors
    /// Some do not within `limit`, with their number.
    pub(super) async fn complete(&mut self, limit: Duration) -> Result<Instant> {
        let end = Instant::now() + limit;
        let mut last = Instant::now();
        while !self.is_complete() {
            match self.next(end).await {
                Some((at, ..)) => last = at,
                None => {
                    let all = self.len();
                    let short: Vec<_> = (0..all).filter(|member| self.sees(*member) < all).collect();
                    let example = short.first().map_or(0, |member| self.sees(*member));
                    bail!(
                        "{}: {} of {all} do not see all after {limit:?}; {:?} sees {example}",
                        P::SYSTEM,
                        short.len(),
                        short.first()
                    );
                }
            }
        }
        Ok(last)
    }

    fn take(&mut self, heard: Heard) {
        let Some(entry) = self.members.get_mut(heard.member) else { return };
        if entry.life != heard.life {
            return; // words of a former life
        }
        let news = match &heard.said {
            Said::IAm(other) => {
                self.names.insert(other.clone(), heard.member);
                let pending = std::mem::take(&mut self.pending);
                pending.into_iter().for_each(|heard| self.take(heard));
                return;
            }
            Said::Change(change) => News::Change(change.clone()),
            Said::Up(who) | Said::Down(who) => {
                let Some(&subject) = self.names.get(who) else {
                    self.pending.push(heard);
                    return;
                };
                if matches!(heard.said, Said::Up(_)) {
                    entry.view.insert(subject);
                    News::Up(subject)
                } else {
                    entry.view.remove(&subject);
                    self.downs.push((heard.member, subject));
                    News::Down(subject)
                }
            }
        };
        self.news.push_back((heard.at, heard.member, news));
    }
}

impl<P> Drop for Fleet<P> {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
        }
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.wait();
        }
    }
}

/// Returns the name of a member.
pub(super) fn name(member: usize) -> String {
    format!("m{member}")
}
