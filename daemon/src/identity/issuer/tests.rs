//! The desk of an issuer, without the network: what it mints, whom it admits, what survives on disk.

use std::path::Path;

use gossamer_core::catalog::{MemberLiveness, NodeView};
use gossamer_core::membership::MemberState;
use gossamer_core::trust::{Sign as _, TrustBundle};
use gossamer_wire::MeshId;

use super::*;
use arc_swap::ArcSwap;

use crate::identity::{Credentials, InitRequest, KnownIssuer, NodeKey, init};
use crate::index::IndexWriter;

/// A desk on a state directory of its own.
struct Office {
    desk: Desk,
    index: IndexWriter,
    _dir: tempfile::TempDir,
}

fn office() -> Office {
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let request = InitRequest {
        mesh_name: "test".parse().expect("name"),
        group: "west".parse().expect("name"),
        node: "vm-a".parse().expect("name"),
        zone: None,
        region: None,
        lifetimes: Lifetimes::default(),
    };
    let identity = Arc::new(init(&store, &request).expect("makes"));
    let index = IndexWriter::default();
    let desk = Desk {
        tokens: Tokens::read(&store).expect("reads"),
        store,
        live: Arc::new(ArcSwap::from_pointee(Credentials::of(&identity))),
        trust: Arc::new(ArcSwap::from_pointee(identity.trust.clone())),
        authority: AuthorityHandle::new(&identity).0,
        lifetimes: Lifetimes::default(),
        identity,
        index: index.reader(),
        advertised: watch::channel(addresses(&["192.0.2.1:4677"])).1,
        lanes: Vec::new(),
        deny: Deny::default(),
    };
    Office { desk, index, _dir: dir }
}

fn request() -> TokenRequest {
    TokenRequest {
        ttl: Duration::from_secs(60),
        uses: 1,
        group: Some("east".parse().expect("name")),
        node_pattern: None,
        claims: Claims::default(),
        addresses: Vec::new(),
    }
}

/// Claims of every kind.
fn claims() -> Claims {
    Claims {
        services: vec!["web-*".to_owned()],
        fqdn_suffixes: vec!["corp.example".parse().expect("a suffix")],
        labels: [("zone".parse().expect("a label"), "a".parse().expect("a label"))].into(),
        relay: true,
        ephemeral_seconds: 600,
    }
}

fn joiner(token: &Token, name: &str) -> Checked {
    let key = NodeKey::generate().expect("a key");
    let request = JoinRequest {
        token: token.reveal().to_owned(),
        public_key: key.public(),
        proof: Vec::new(),
        name: name.parse().expect("name"),
    };
    Checked { token: token.clone(), request, node: key.node() }
}

fn given(list: &[&str]) -> Vec<Address> {
    list.iter().map(|text| text.parse().expect("address")).collect()
}

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|text| text.parse().expect("address")).collect()
}

impl Office {
    fn key(&self) -> Arc<IssuerKey> {
        self.desk.live.load().issuer.clone().expect("an issuer")
    }

    /// Lets the desk know another issuer of the mesh by its key, and what a root revoked.
    fn know(&self, other: &NodeKey, revoked: &[TokenId]) {
        let live = Credentials {
            issuers: [KnownIssuer {
                id: other.node(),
                node: None,
                name: "other".to_owned(),
                public_key: other.public(),
                groups: vec!["east".parse().expect("name")],
                validity: (0, u64::MAX),
            }]
            .into(),
            revoked: Arc::new(revoked.iter().copied().collect()),
            ..Credentials::clone(&self.desk.live.load())
        };
        self.desk.live.store(Arc::new(live));
    }

    async fn token(&mut self, request: TokenRequest) -> Token {
        self.desk.create(request).await.expect("mints").token
    }

    async fn refusal(&mut self, checked: &Checked) -> Refusal {
        self.desk.try_admit(checked).await.expect_err("refuses")
    }

    fn on_disk(&self) -> Tokens {
        Tokens::read(&self.desk.store).expect("reads")
    }

    /// Lets the catalog know a node by this name.
    fn show(&mut self, name: &str, group: &str, state: MemberState) -> NodeId {
        let node = NodeId::from_bytes(rand::random());
        let view = NodeView {
            node,
            name: name.parse().expect("name"),
            group: group.parse().expect("name"),
            zone: None,
            region: None,
            labels: Vec::new(),
            claims: Claims::default(),
            addresses: addresses(&["192.0.2.9:4677"]),
            relays: Vec::new(),
            lanes: Vec::new(),
            epoch: 1,
            records: 0,
            age: Duration::ZERO,
            lease_left: Duration::from_secs(60),
            liveness: MemberLiveness::Alive,
            held: 0,
            quarantined: 0,
            not_after: u64::MAX,
            issuer: None,
            statement_digest: None,
            outside_claims: 0,
            outside_suffixes: 0,
            trusted: true,
        };
        for known in self.index.reader().nodes() {
            self.index.update_node(known.node, |known| (known.view, known.state) = (None, None));
        }
        self.index.update_node(node, |known| (known.view, known.state) = (Some(view), Some(state)));
        node
    }
}

#[tokio::test]
async fn a_token_grants_what_was_asked_for() {
    let mut office = office();
    let asked = TokenRequest {
        uses: 3,
        node_pattern: Some("vm-*".to_owned()),
        claims: claims(),
        addresses: given(&["198.51.100.7:4677", "tls://gate.example"]),
        ..request()
    };
    let before = clock::wall();
    let token = office.token(asked).await;
    let grant = token.grant();
    assert_eq!((grant.mesh, grant.issuer), (office.desk.identity.mesh, office.key().id()));
    assert_eq!((grant.uses, grant.group.as_str()), (3, "east"));
    assert_eq!(grant.node_pattern.as_deref(), Some("vm-*"));
    assert_eq!(grant.claims, claims());
    assert_eq!(grant.addresses, addresses(&["198.51.100.7:4677"]));
    assert_eq!(grant.lanes, ["tls://gate.example:443".parse().expect("address")]);
    assert!((before + 60..=clock::wall() + 60).contains(&grant.not_after));
    let (signed, signature) = token.signed();
    assert!(signature_holds(&office.key().public(), &signed, &signature));
}

#[tokio::test]
async fn a_token_without_group_and_addresses_takes_those_of_the_issuer() {
    let mut office = office();
    let own = addresses(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:1", "10.0.0.1:1"]);
    office.desk.advertised = watch::channel(own).1;
    office.desk.lanes = vec!["tls://gate.example:443".parse().expect("address")];
    let token = office.token(TokenRequest { group: None, ..request() }).await;
    assert_eq!(token.grant().group.as_str(), "west");
    let best = addresses(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "10.0.0.1:1"]);
    assert_eq!(token.grant().addresses, best, "one of them for the network around");
    assert_eq!(token.grant().lanes, office.desk.lanes);
}

#[tokio::test]
async fn what_no_reader_would_take_is_not_minted() {
    let mut office = office();
    let five = given(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:1", "192.0.2.5:1"]);
    let refused = office.desk.create(TokenRequest { addresses: five, ..request() }).await;
    assert!(matches!(refused, Err(TokenError::Addresses { given: 5, limit: 4, .. })));
    let three = given(&["tls://a.example", "tls://b.example", "tls://c.example"]);
    let refused = office.desk.create(TokenRequest { addresses: three, ..request() }).await;
    let why = refused.expect_err("too many").to_string();
    assert!(why.contains("at most 2 tls:// addresses, 3 were given"), "{why}");
    let astray = given(&["tls://169.254.169.254:80"]);
    let refused = office.desk.create(TokenRequest { addresses: astray, ..request() }).await;
    assert!(matches!(refused, Err(TokenError::Denied(..))));
    let suffix = || ["a".repeat(60), "b".repeat(60)].join(".").parse().expect("a suffix");
    for long in [
        Claims { services: vec!["s".repeat(300)], ..Claims::default() },
        Claims { fqdn_suffixes: vec![suffix(), suffix(), suffix()], ..Claims::default() },
    ] {
        let refused = office.desk.create(TokenRequest { claims: long, ..request() }).await;
        let why = refused.expect_err("too long").to_string();
        assert!(why.contains("the limit is 256; name fewer services"), "{why}");
    }
    let node_pattern = Some("x".repeat(600));
    let refused = office.desk.create(TokenRequest { node_pattern, ..request() }).await;
    assert!(matches!(refused, Err(TokenError::TooLong(_))));
    assert!(office.desk.list().expect("an issuer").is_empty() && office.on_disk().minted.is_empty());
}

#[tokio::test]
async fn only_a_narrow_token_may_be_without_a_limit() {
    let mut office = office();
    let narrow = || TokenRequest {
        uses: 0,
        claims: Claims { ephemeral_seconds: 60, ..Claims::default() },
        node_pattern: Some("ci-*".to_owned()),
        ..request()
    };
    for wide in [
        TokenRequest { claims: Claims::default(), ..narrow() },
        TokenRequest { node_pattern: None, ..narrow() },
        TokenRequest { group: None, ..narrow() },
    ] {
        assert!(matches!(office.desk.create(wide).await, Err(TokenError::Unlimited)));
    }
    let token = office.token(narrow()).await;
    for name in ["ci-1", "ci-2", "ci-3"] {
        office.desk.try_admit(&joiner(&token, name)).await.expect("admits");
    }
}

#[tokio::test]
async fn who_is_admitted_gets_a_certificate_of_exactly_what_was_granted() {
    let mut office = office();
    let token = office.token(TokenRequest { claims: claims(), ..request() }).await;
    let checked = joiner(&token, "vm-b");
    let admitted = office.desk.try_admit(&checked).await.expect("admits");
    let mesh = office.desk.identity.mesh;
    let bundle = TrustBundle::new(mesh, admitted.roots, admitted.issuers).expect("certificates");
    let leaf = bundle.verify(&admitted.leaf, &[], clock::wall()).expect("trusted");
    assert_eq!(leaf.node, checked.node);
    assert_eq!((leaf.name.as_str(), leaf.group.as_str()), ("vm-b", "east"));
    assert_eq!(leaf.claims, token.grant().claims);
    assert_eq!(admitted.peers.len(), 1, "the issuer itself");
}

#[tokio::test]
async fn a_use_is_on_disk_before_the_certificate_leaves() {
    let mut office = office();
    let token = office.token(request()).await;
    let first = joiner(&token, "vm-b");
    office.desk.try_admit(&first).await.expect("admits");
    // A crash now: the desk that starts again knows the use.
    office.desk.tokens = office.on_disk();
    office.desk.try_admit(&first).await.expect("admits the same key again");
    assert_eq!(office.refusal(&joiner(&token, "vm-c")).await, Refusal::Used);
    let used_by: Vec<_> = office.desk.list().expect("an issuer").remove(0).used_by;
    assert_eq!(used_by.iter().map(|entry| entry.node).collect::<Vec<_>>(), [first.node]);
}

#[tokio::test]
async fn nobody_is_admitted_whose_use_cannot_be_kept() {
    let mut office = office();
    let token = office.token(request()).await;
    std::fs::remove_dir_all(office.desk.store.dir()).expect("removes");
    assert_eq!(office.refusal(&joiner(&token, "vm-b")).await, Refusal::Unavailable);
    assert!(
        office.desk.list().expect("an issuer")[0].used_by.is_empty(),
        "what is not on disk is not believed"
    );
}

#[tokio::test]
async fn an_expired_token_admits_nobody() {
    let mut office = office();
    let grant = office.token(request()).await.grant().clone();
    let old = Grant { not_after: clock::wall() - 1, ..grant };
    let key = office.key();
    let token = Token::build(old, |bytes| key.sign(bytes)).expect("fits");
    assert_eq!(office.refusal(&joiner(&token, "vm-b")).await, Refusal::Expired);
}

#[tokio::test]
async fn a_token_that_somebody_else_signed_or_changed_admits_nobody() {
    let mut office = office();
    let grant = office.token(request()).await.grant().clone();
    let stranger = NodeKey::generate().expect("a key");
    let forged = Token::build(grant.clone(), |bytes| stranger.sign(bytes)).expect("fits");
    assert_eq!(office.refusal(&joiner(&forged, "vm-b")).await, Refusal::Foreign);
    let other = Grant { issuer: stranger.node(), ..grant };
    let elsewhere = Token::build(other, |bytes| stranger.sign(bytes)).expect("fits");
    assert_eq!(office.refusal(&joiner(&elsewhere, "vm-b")).await, Refusal::OtherIssuer);
}

#[tokio::test]
async fn a_name_outside_the_pattern_is_refused() {
    let mut office = office();
    let token = office.token(TokenRequest { node_pattern: Some("vm-*".to_owned()), ..request() }).await;
    assert_eq!(office.refusal(&joiner(&token, "db-1")).await, Refusal::Name);
    office.desk.try_admit(&joiner(&token, "vm-1")).await.expect("admits");
}

#[tokio::test]
async fn a_name_is_taken_while_a_live_node_of_the_group_has_it() {
    let mut office = office();
    let token = office.token(TokenRequest { uses: 9, ..request() }).await;
    office.show("vm-b", "east", MemberState::Alive);
    assert_eq!(office.refusal(&joiner(&token, "vm-b")).await, Refusal::NameTaken);
    office.show("vm-b", "east", MemberState::Suspect);
    assert_eq!(office.refusal(&joiner(&token, "vm-b")).await, Refusal::NameTaken);
    office.show("vm-b", "west", MemberState::Alive);
    office.desk.try_admit(&joiner(&token, "vm-b")).await.expect("another group's name is free");
    office.show("vm-b", "east", MemberState::Down);
    office.desk.try_admit(&joiner(&token, "vm-b")).await.expect("a dead node's name is free");
    // The issuer knows its own name without any catalog.
    let own = office.token(TokenRequest { group: None, ..request() }).await;
    assert_eq!(office.refusal(&joiner(&own, "vm-a")).await, Refusal::NameTaken);
}

#[tokio::test]
async fn a_joiner_hears_of_members_that_are_up_and_can_be_dialled() {
    let mut office = office();
    let up = office.show("vm-b", "east", MemberState::Alive);
    let hints: Vec<_> = office.desk.hints().into_iter().map(|hint| hint.node).collect();
    assert_eq!(hints, [office.desk.identity.node(), up]);
    office.show("vm-b", "east", MemberState::Down);
    assert_eq!(office.desk.hints().len(), 1);
}

#[tokio::test]
async fn a_revoked_token_stays_revoked_and_an_unknown_one_is_named() {
    let mut office = office();
    let token = office.token(request()).await;
    let id = token.grant().id;
    let revoked = office.desk.revoke(id).await.expect("revokes");
    assert!(revoked.used_by.is_empty() && revoked.revoked);
    office.desk.tokens = office.on_disk();
    assert_eq!(office.refusal(&joiner(&token, "vm-b")).await, Refusal::Revoked);
    assert!(office.desk.list().expect("an issuer")[0].revoked);
    let unknown = TokenId::from_bytes([9; 16]);
    assert!(matches!(office.desk.revoke(unknown).await, Err(TokenError::Unknown(id)) if id == unknown));
}

#[tokio::test]
async fn the_ledger_survives_a_restart_without_any_secret() {
    let mut office = office();
    let token = office.token(request()).await;
    office.desk.try_admit(&joiner(&token, "vm-b")).await.expect("admits");
    let file = std::fs::read_to_string(office.desk.store.dir().join("tokens.json")).expect("there");
    assert!(!file.contains("gsm1_"), "{file}");
    let again = office.on_disk();
    assert_eq!(again.ledger, office.desk.tokens.ledger);
    assert_eq!(again.minted.len(), 1);
}

#[tokio::test]
async fn a_damaged_ledger_is_an_error_and_never_an_empty_one() {
    let mut office = office();
    let token = office.token(request()).await;
    office.desk.try_admit(&joiner(&token, "vm-b")).await.expect("admits");
    let store = &office.desk.store;
    let read = |path: &Path| std::fs::read_to_string(path).expect("there");
    let good = read(&store.dir().join("tokens.json"));
    let id = token.grant().id.to_string();
    for damaged in [&good[..good.len() / 2], "", "[]", &good.replace(&id, "not-an-id")] {
        store.write("tokens.json", damaged.as_bytes()).expect("writes");
        assert!(matches!(Tokens::read(store), Err(StoreError::Damaged { .. })), "{damaged}");
    }
}

#[test]
fn expired_tokens_make_room_and_good_ones_do_not() {
    let minted = |not_after| Minted {
        id: TokenId::from_bytes([1; 16]).to_string(),
        group: "west".parse().expect("name"),
        uses: 1,
        not_after,
        revoked: false,
        lifetime: 60,
        node_pattern: None,
        claims: Claims::default(),
        addresses: Vec::new(),
    };
    let (past, future) = (90, 1_000);
    let room = |minted: Vec<Minted>| {
        let mut tokens = Tokens { minted, ..Tokens::default() };
        (tokens.make_room(100), tokens.minted.len())
    };
    assert_eq!(room(vec![minted(past); 5]), (true, 5), "nothing is forgotten while there is room");
    let mut full = vec![minted(future); MAX_TOKENS - 1];
    full.push(minted(past));
    assert_eq!(room(full), (true, MAX_TOKENS - 1));
    let full = vec![minted(future); MAX_TOKENS];
    assert_eq!(room(full), (false, MAX_TOKENS), "a good token is never forgotten for a new one");
}

#[test]
fn a_token_of_another_issuer_is_listed_where_it_was_used_once() {
    let grant = |id| Grant {
        mesh: MeshId::from_bytes([1; 16]),
        root_pin: [0; 32],
        id: TokenId::from_bytes([id; 16]),
        issuer: NodeId::from_bytes([2; 16]),
        not_after: 1_000,
        uses: 3,
        group: "west".parse().expect("name"),
        node_pattern: Some("job-*".to_owned()),
        claims: claims(),
        addresses: Vec::new(),
        lanes: Vec::new(),
    };
    let mut tokens = Tokens::default();
    tokens.know(&grant(7), 900);
    tokens.know(&grant(7), 950);
    let [known] = &tokens.minted[..] else { panic!("{} are listed", tokens.minted.len()) };
    assert_eq!((known.uses, known.lifetime, &known.claims), (3, 100, &claims()));
    tokens.minted = vec![known.clone(); MAX_TOKENS];
    tokens.know(&grant(8), 900);
    assert_eq!(tokens.minted.len(), MAX_TOKENS, "one that has no room is not listed");
}

#[test]
fn the_operator_is_warned_of_addresses_that_others_cannot_reach() {
    for (list, warning) in [
        (&[][..], Some("no address")),
        (&["127.0.0.1:4677", "[::1]:4677"], Some("only this machine")),
        (&["10.0.0.1:4677"], Some("private addresses")),
        (&["192.168.1.1:1", "172.16.0.1:1", "127.0.0.1:1"], Some("private addresses")),
        (&["169.254.1.1:1"], Some("private addresses")),
        (&["[fd00::1]:1"], Some("private addresses")),
        (&["[fe80::1]:1"], Some("private addresses")),
        (&["198.51.100.1:1"], None),
        (&["10.0.0.1:1", "198.51.100.1:1"], None),
        (&["[2001:db8::1]:1"], None),
    ] {
        let said = address_warning(&addresses(list));
        match (warning, &said) {
            (None, None) => {}
            (Some(warning), Some(said)) => {
                assert!(said.contains(warning) && said.contains("--address"), "{list:?}: {said}");
            }
            _ => panic!("{list:?}: {said:?}"),
        }
    }
}

#[tokio::test]
async fn a_token_of_several_uses_is_good_at_every_issuer_until_it_is_revoked() {
    let mut office = office();
    let other = NodeKey::generate().expect("a key");
    let grant = office.token(TokenRequest { uses: 2, ..request() }).await.grant().clone();
    let token = |uses| {
        let grant = Grant { issuer: other.node(), uses, ..grant.clone() };
        Token::build(grant, |bytes| other.sign(bytes)).expect("fits")
    };
    assert_eq!(
        office.refusal(&joiner(&token(2), "vm-b")).await,
        Refusal::Foreign,
        "nobody knows that issuer"
    );
    office.know(&other, &[]);
    office.desk.try_admit(&joiner(&token(2), "vm-b")).await.expect("admits");
    assert_eq!(office.refusal(&joiner(&token(1), "vm-c")).await, Refusal::OtherIssuer);
    // Its key admits to the groups of its certificate only, whoever is asked.
    let wide = Grant { issuer: other.node(), group: "west".parse().expect("name"), ..grant.clone() };
    let wide = Token::build(wide, |bytes| other.sign(bytes)).expect("fits");
    assert_eq!(office.refusal(&joiner(&wide, "vm-c")).await, Refusal::Foreign);
    office.know(&other, &[grant.id]);
    assert_eq!(office.refusal(&joiner(&token(2), "vm-c")).await, Refusal::Revoked);
}

#[tokio::test]
async fn a_renewed_token_grants_the_same_for_as_long_again() {
    let mut office = office();
    let asked = TokenRequest {
        uses: 0,
        node_pattern: Some("job-*".to_owned()),
        claims: claims(),
        addresses: given(&["198.51.100.7:4677"]),
        ..request()
    };
    let old = office.token(asked).await;
    office.desk.tokens = office.on_disk();
    let new = office.desk.renew_token(old.grant().id).await.expect("renews").token;
    assert_ne!(new.grant().id, old.grant().id);
    let same = Grant { id: old.grant().id, not_after: old.grant().not_after, ..new.grant().clone() };
    assert!(same == *old.grant());
    assert!(new.grant().not_after >= old.grant().not_after);
    let unknown = office.desk.renew_token(TokenId::from_bytes([9; 16])).await;
    assert!(matches!(unknown, Err(TokenError::Unknown(_))));
}
