//! The state of one port of a VIP: ours, left to the service itself, refused, or in another program's hands.
//!
//! Owns: the rules of design section 8. Must not know: how listeners are found or opened.
//! Driven by: the `vips` task, at each look at a port.
//!
//! The kernel gives a connection to VIP:P to a listener on `0.0.0.0:P` when nobody holds VIP:P, and refuses to
//! bind one while the other exists (measured). So we must know who holds the wildcard before a name is answered,
//! and must stay away from ports that this machine's own services want.

use std::fmt;

/// What became of an attempt to listen on VIP:P.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindOutcome {
    /// We listen.
    Done,
    /// The port needs a privilege we lack.
    Denied,
    /// Somebody holds it.
    InUse,
    /// Anything else; the text names it.
    Failed(String),
}

/// A listener of another program that would receive what is sent to VIP:P.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whether it listens on the wildcard address; else on the VIP itself.
    pub wildcard: bool,
    /// Its program, when this daemon may read it.
    pub program: Option<String>,
}

/// A registered target of this node that listens, or wants to listen, on port P.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTarget {
    /// Whether it is an instance the VIP's name stands for, called by the same port number.
    pub serves: bool,
    /// The verdict of its check.
    pub healthy: bool,
    /// Whether it listens on the wildcard address, or did when it last listened; `None` while nobody knows.
    pub wildcard: Option<bool>,
}

/// What a port of a VIP is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// We listen on it.
    Bound,
    /// The service's own healthy instance on this machine receives the connections, which is right.
    Native,
    /// Nobody listens: a local target wants the port for itself, and must be able to start. Clients are refused.
    Waiting,
    /// We may not listen. Clients are refused.
    Denied {
        /// The cause.
        why: String,
    },
    /// Another program would receive the connections. The name must not be answered.
    Stolen {
        /// Its name, when it can be read.
        program: Option<String>,
    },
}

impl PortState {
    /// Returns its name, one word.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Native => "native",
            Self::Waiting => "waiting",
            Self::Denied { .. } => "denied",
            Self::Stolen { .. } => "stolen",
        }
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What to do about a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Try to listen, then judge again with the outcome.
    Bind,
    /// The state is this.
    Be(PortState),
}

/// Judges a port that we do not listen on, before (`None`) or after an attempt to listen.
pub fn judge(holder: Option<&Holder>, targets: &[LocalTarget], outcome: Option<BindOutcome>) -> Step {
    if outcome == Some(BindOutcome::Done) {
        return Step::Be(PortState::Bound);
    }
    if let Some(holder) = holder {
        let is_it = |target: &LocalTarget| target.serves && target.healthy && target.wildcard != Some(false);
        let is_native = holder.wildcard && targets.iter().any(is_it);
        let stolen = || PortState::Stolen { program: holder.program.clone() };
        return Step::Be(if is_native { PortState::Native } else { stolen() });
    }
    if must_release(targets) {
        return Step::Be(PortState::Waiting);
    }
    match outcome {
        None => Step::Bind,
        Some(BindOutcome::Done) => Step::Be(PortState::Bound),
        Some(BindOutcome::Denied) => {
            Step::Be(PortState::Denied { why: "ports below 1024 need a privilege".to_owned() })
        }
        // A socket that is bound and may listen at any moment is in no list.
        Some(BindOutcome::InUse) => Step::Be(PortState::Stolen { program: None }),
        Some(BindOutcome::Failed(why)) => Step::Be(PortState::Denied { why }),
    }
}

/// Returns whether our listener on VIP:P would keep a registered target of this node from starting.
pub fn must_release(targets: &[LocalTarget]) -> bool {
    targets.iter().any(|target| target.wildcard != Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITSELF: LocalTarget = LocalTarget { serves: true, healthy: true, wildcard: Some(true) };

    fn postgres() -> Holder {
        Holder { wildcard: true, program: Some("postgres".to_owned()) }
    }

    fn stolen() -> Step {
        Step::Be(PortState::Stolen { program: Some("postgres".to_owned()) })
    }

    #[test]
    fn a_free_port_is_bound() {
        assert_eq!(judge(None, &[], None), Step::Bind);
        assert_eq!(judge(None, &[], Some(BindOutcome::Done)), Step::Be(PortState::Bound));
    }

    #[test]
    fn another_programs_wildcard_listener_steals_the_port() {
        assert_eq!(judge(Some(&postgres()), &[], None), stolen());
        assert_eq!(judge(Some(&postgres()), &[], Some(BindOutcome::InUse)), stolen());
    }

    #[test]
    fn a_wildcard_listener_steals_the_port_also_when_we_lack_the_privilege() {
        assert_eq!(judge(Some(&postgres()), &[], Some(BindOutcome::Denied)), stolen());
    }

    #[test]
    fn the_services_own_healthy_instance_keeps_its_port() {
        assert_eq!(judge(Some(&postgres()), &[ITSELF], None), Step::Be(PortState::Native));
        let not_seen_before = LocalTarget { wildcard: None, ..ITSELF };
        assert_eq!(judge(Some(&postgres()), &[not_seen_before], None), Step::Be(PortState::Native));
    }

    #[test]
    fn a_wildcard_listener_is_native_only_for_its_own_healthy_service() {
        let cases = [
            LocalTarget { serves: false, ..ITSELF },
            LocalTarget { healthy: false, ..ITSELF },
            // The instance listens on one address: the wildcard is somebody else's.
            LocalTarget { wildcard: Some(false), ..ITSELF },
        ];
        for target in cases {
            assert_eq!(judge(Some(&postgres()), &[target], None), stolen(), "{target:?}");
        }
    }

    #[test]
    fn a_listener_on_the_vip_itself_is_never_native() {
        let holder = Holder { wildcard: false, ..postgres() };
        assert_eq!(judge(Some(&holder), &[ITSELF], None), stolen());
    }

    #[test]
    fn a_local_target_that_wants_the_wildcard_can_restart() {
        assert_eq!(judge(None, &[ITSELF], None), Step::Be(PortState::Waiting));
        let never_seen = LocalTarget { wildcard: None, serves: false, healthy: false };
        assert_eq!(judge(None, &[never_seen], None), Step::Be(PortState::Waiting));
        assert!(must_release(&[never_seen]));
    }

    #[test]
    fn a_local_target_on_one_address_does_not_keep_us_away() {
        let elsewhere = LocalTarget { wildcard: Some(false), ..ITSELF };
        assert_eq!(judge(None, &[elsewhere], None), Step::Bind);
        assert!(!must_release(&[elsewhere]));
        assert!(!must_release(&[]));
    }

    #[test]
    fn a_port_we_may_not_use_is_denied_with_the_cause() {
        let Step::Be(PortState::Denied { why }) = judge(None, &[], Some(BindOutcome::Denied)) else {
            panic!("not denied");
        };
        assert!(why.contains("1024"));
        let outcome = BindOutcome::Failed("too many open files".to_owned());
        let why = "too many open files".to_owned();
        assert_eq!(judge(None, &[], Some(outcome)), Step::Be(PortState::Denied { why }));
    }

    #[test]
    fn a_port_in_use_by_nobody_we_can_see_is_stolen() {
        let unseen = Step::Be(PortState::Stolen { program: None });
        assert_eq!(judge(None, &[], Some(BindOutcome::InUse)), unseen);
    }

    #[test]
    fn each_state_has_a_word() {
        let states = [
            PortState::Bound,
            PortState::Native,
            PortState::Waiting,
            PortState::Denied { why: String::new() },
            PortState::Stolen { program: None },
        ];
        assert_eq!(
            states.each_ref().map(PortState::word),
            ["bound", "native", "waiting", "denied", "stolen"]
        );
    }
}
