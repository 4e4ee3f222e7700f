//! The keys of roots that lie on this machine, and the form in which they leave it.
//!
//! Owns: their files. Must not know: who may ask, what they sign. Driven by: the authority task.
//!
//! One key is here as a rule, a second one while roots are rotated. They leave the machine as encrypted PKCS#8 in PEM
//! (RFC 5958, RFC 8018, RFC 7468), which `openssl pkey` reads too.

use pkcs8::der::asn1::AnyRef;
use pkcs8::der::pem::LineEnding;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{
    AlgorithmIdentifierRef, EncryptedPrivateKeyInfo, ObjectIdentifier, PrivateKeyInfo, SecretDocument,
};
use thiserror::Error;
use zeroize::Zeroizing;

use gossamer_core::trust::RootFacts;
use gossamer_wire::NodeId;

use super::{NEXT_ROOT_KEY, NodeKey, ROOT_KEY, RootKey};
use crate::store::{Store, StoreError};

const FILES: [&str; 2] = [ROOT_KEY, NEXT_ROOT_KEY];
const LABEL: &str = "ENCRYPTED PRIVATE KEY";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----\n";
/// Ed25519 (RFC 8410 section 3).
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// scrypt with N = 2^14, r = 8, p = 5: as strong as OWASP's first choice, in the 32 MiB that openssl allows itself.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);

/// Why a key did not leave, or did not come.
#[derive(Debug, Error)]
pub enum RootKeyError {
    /// The operator's fault.
    #[error("the file holds no encrypted private key; give one that gossamer root export wrote")]
    NotAKey,
    /// The operator's fault.
    #[error("the passphrase is another one, or the file was changed")]
    Passphrase,
    /// The operator's fault.
    #[error("the key is that of no root of this mesh that counts; gossamer root list shows them")]
    NotARoot,
    /// The operator's fault.
    #[error("two other root keys are on this machine; finish the rotation, or import it on another member")]
    NoRoom,
    /// The operator's fault.
    #[error("an empty passphrase protects nothing")]
    Empty,
    /// A bug.
    #[error("the key could not be encrypted")]
    Encrypt,
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns the keys of these roots that are here, in the order of the roots.
///
/// # Errors
/// A file is damaged, or others can read it.
pub(crate) fn read(store: &Store, roots: &[RootFacts]) -> Result<Vec<RootKey>, StoreError> {
    let files = keys(store)?;
    let of_root = |root: &RootFacts| {
        let (_, key) = files.iter().find(|(_, key)| key.node() == root.id)?;
        RootKey::read(key.pkcs8(), &root.certificate).ok()
    };
    Ok(roots.iter().filter_map(of_root).collect())
}

/// Returns the key of a root to be, made and written unless an earlier try left one.
///
/// # Errors
/// The disk refuses, or there is no randomness.
pub(crate) fn next(store: &Store) -> Result<NodeKey, StoreError> {
    if let Some((_, key)) = keys(store)?.into_iter().find(|(file, _)| *file == NEXT_ROOT_KEY) {
        return Ok(key);
    }
    let no_randomness = || StoreError::Io {
        path: store.dir().join(NEXT_ROOT_KEY),
        error: std::io::Error::other("the system has no randomness for a key"),
    };
    let key = NodeKey::generate().ok_or_else(no_randomness)?;
    store.write(NEXT_ROOT_KEY, key.pkcs8())?;
    Ok(key)
}

/// Removes the keys of retired roots, and lets what is left have the first place. Others stay, whatever they are of: what is
/// gone cannot be made again.
///
/// # Errors
/// The disk refuses; may be repeated.
pub(crate) fn settle(store: &Store, retired: &[RootFacts]) -> Result<(), StoreError> {
    let (go, stay): (Vec<_>, Vec<_>) =
        keys(store)?.into_iter().partition(|(_, key)| retired.iter().any(|root| root.id == key.node()));
    match (&stay[..], go.is_empty()) {
        ([(NEXT_ROOT_KEY, key)], false) => {
            store.write(ROOT_KEY, key.pkcs8())?;
            store.remove(NEXT_ROOT_KEY)
        }
        // Killed between the two lines above.
        ([(_, one), (_, other)], _) if one.node() == other.node() => store.remove(NEXT_ROOT_KEY),
        _ => go.iter().try_for_each(|(file, _)| store.remove(file)),
    }
}

/// Removes all keys of roots from this machine.
///
/// # Errors
/// The disk refuses; may be repeated.
pub(crate) fn remove(store: &Store) -> Result<(), StoreError> {
    FILES.iter().try_for_each(|file| store.remove(file))
}

/// Returns keys under a passphrase, one PEM block each.
///
/// # Errors
/// The passphrase is empty.
pub(crate) fn export(keys: &[RootKey], passphrase: &str) -> Result<Zeroizing<String>, RootKeyError> {
    if passphrase.is_empty() {
        return Err(RootKeyError::Empty);
    }
    let blocks = keys.iter().map(|key| encrypt(key.pkcs8(), passphrase).ok_or(RootKeyError::Encrypt));
    Ok(Zeroizing::new(blocks.collect::<Result<String, _>>()?))
}

/// Puts the keys of an export back, each that is one of a root that counts. Returns these roots.
///
/// # Errors
/// See [`RootKeyError`]; no key that is here was overwritten.
pub(crate) fn import(
    store: &Store,
    roots: &[RootFacts],
    pem: &str,
    passphrase: &str,
) -> Result<Vec<NodeId>, RootKeyError> {
    let mut new = Vec::new();
    for block in pem.split_inclusive(END).filter(|block| block.contains(LABEL)) {
        let key = decrypt(block, passphrase)?;
        if roots.iter().any(|root| root.id == key.node()) {
            new.push(key);
        }
    }
    if new.is_empty() {
        return Err(if pem.contains(LABEL) { RootKeyError::NotARoot } else { RootKeyError::NotAKey });
    }
    for key in &new {
        let here = keys(store)?;
        if here.iter().any(|(_, known)| known.node() == key.node()) {
            continue;
        }
        let free = FILES.iter().find(|file| here.iter().all(|(taken, _)| taken != *file));
        store.write(free.ok_or(RootKeyError::NoRoom)?, key.pkcs8())?;
    }
    Ok(new.iter().map(NodeKey::node).collect())
}

/// Reads the keys that are here, whatever root they are of.
fn keys(store: &Store) -> Result<Vec<(&'static str, NodeKey)>, StoreError> {
    let mut keys = Vec::new();
    for file in FILES {
        let Some(pkcs8) = store.read(file)?.map(Zeroizing::new) else { continue };
        let damaged = || StoreError::Damaged {
            path: store.dir().join(file),
            why: "it is not an Ed25519 key".to_owned(),
        };
        keys.push((file, NodeKey::read(&pkcs8).ok_or_else(damaged)?));
    }
    Ok(keys)
}

/// Encrypts a key in the first version of the format: the second one carries the public key, which openssl 3.0 refuses.
fn encrypt(pkcs8: &[u8], passphrase: &str) -> Option<String> {
    let seed = PrivateKeyInfo::try_from(pkcs8).ok()?.private_key;
    let algorithm = AlgorithmIdentifierRef { oid: ED25519, parameters: None::<AnyRef<'_>> };
    let (salt, iv): ([u8; 16], [u8; 16]) = (rand::random(), rand::random());
    let (log_n, r, p) = SCRYPT;
    let cost = scrypt::Params::new(log_n, r, p, scrypt::Params::RECOMMENDED_LEN).ok()?;
    let parameters = pbes2::Parameters::scrypt_aes256cbc(cost, &salt, &iv).ok()?;
    let document = PrivateKeyInfo::new(algorithm, seed).encrypt_with_params(parameters, passphrase).ok()?;
    Some(document.to_pem(LABEL, LineEnding::LF).ok()?.to_string())
}

fn decrypt(block: &str, passphrase: &str) -> Result<NodeKey, RootKeyError> {
    let (label, document) = SecretDocument::from_pem(block.trim()).map_err(|_| RootKeyError::NotAKey)?;
    if label != LABEL {
        return Err(RootKeyError::NotAKey);
    }
    let encrypted =
        EncryptedPrivateKeyInfo::try_from(document.as_bytes()).map_err(|_| RootKeyError::NotAKey)?;
    let key = encrypted.decrypt(passphrase).map_err(|_| RootKeyError::Passphrase)?;
    NodeKey::read(key.as_bytes()).ok_or(RootKeyError::NotAKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::certificate::{make_root, root_of};
    use gossamer_core::trust::read_root;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("scratch");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        (dir, store)
    }

    fn root() -> (NodeKey, RootFacts) {
        let (key, certificate) = make_root("m").expect("a root");
        (key, read_root(&certificate).expect("reads"))
    }

    #[test]
    fn a_key_leaves_under_a_passphrase_and_comes_back() {
        let (_dir, store) = store();
        let (key, facts) = root();
        store.write(ROOT_KEY, key.pkcs8()).expect("writes");
        let here = read(&store, std::slice::from_ref(&facts)).expect("reads");
        let pem = export(&here, "correct horse").expect("exports");
        assert!(
            pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
            "{}",
            pem.lines().next().unwrap_or("")
        );
        remove(&store).expect("removes");
        assert!(read(&store, std::slice::from_ref(&facts)).expect("reads").is_empty());

        let back = |pem: &str, pass| import(&store, std::slice::from_ref(&facts), pem, pass);
        assert!(matches!(back(&pem, "wrong"), Err(RootKeyError::Passphrase)));
        assert!(matches!(back("no key", "correct horse"), Err(RootKeyError::NotAKey)));
        assert!(store.read(ROOT_KEY).expect("reads").is_none());
        assert_eq!(back(&pem, "correct horse").expect("imports"), [facts.id]);
        assert_eq!(read(&store, std::slice::from_ref(&facts)).expect("reads")[0].id(), facts.id);
        assert!(matches!(export(&here, ""), Err(RootKeyError::Empty)));
        let (_, other) = root();
        assert!(matches!(import(&store, &[other], &pem, "correct horse"), Err(RootKeyError::NotARoot)));
    }

    #[test]
    fn a_retired_key_goes_and_the_next_one_takes_its_place() {
        let (_dir, store) = store();
        let (old, old_facts) = root();
        store.write(ROOT_KEY, old.pkcs8()).expect("writes");
        let new = next(&store).expect("makes");
        assert_eq!(next(&store).expect("an earlier try's").node(), new.node());
        let new_facts = read_root(&root_of(&new, "m").expect("a certificate")).expect("reads");
        let both = [old_facts, new_facts.clone()];
        settle(&store, &[]).expect("settles");
        assert_eq!(read(&store, &both).expect("reads").len(), 2);
        // A third one has no place, and takes none.
        let (third, third_facts) = root();
        let pem = Zeroizing::new(encrypt(third.pkcs8(), "x").expect("encrypts"));
        assert!(matches!(import(&store, &[third_facts], &pem, "x"), Err(RootKeyError::NoRoom)));
        assert_eq!(read(&store, &both).expect("reads").len(), 2);
        settle(&store, &both[..1]).expect("settles");
        assert!(store.read(NEXT_ROOT_KEY).expect("reads").is_none());
        assert_eq!(read(&store, &both).expect("reads")[0].id(), new_facts.id);
        // Killed between the two writes.
        store.write(NEXT_ROOT_KEY, new.pkcs8()).expect("writes");
        settle(&store, &both[..1]).expect("settles");
        assert!(store.read(NEXT_ROOT_KEY).expect("reads").is_none());
        settle(&store, &both).expect("settles");
        assert!(store.read(ROOT_KEY).expect("reads").is_none());
    }
}
