//! Secrets as they would look where they must not be.
//!
//! Owns: the forms in which bytes are written into texts. Must not know: where is searched. Driven by: the check of
//! secrets.

use anyhow::{Context as _, Result, ensure};
use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};

use gossamer_wire::token::PREFIX;

/// A secret with every form it is looked for in.
#[derive(Clone, Debug)]
pub struct Secret {
    /// What it is, for people.
    pub name: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

/// The start of an Ed25519 key in PKCS#8 up to its 32 secret bytes ends with these (RFC 8410).
const SEED: [u8; 4] = [0x04, 0x22, 0x04, 0x20];
/// How much of a secret is looked for: a log may cut the rest off, and chance does not make so much.
const BYTES: usize = 16;

impl Secret {
    /// Takes a private key: the seed of a PKCS#8 file, or all of another one.
    ///
    /// # Errors
    /// It is too short to be told from chance.
    pub fn key(name: &str, file: &[u8]) -> Result<Self> {
        let seed = file.windows(SEED.len()).position(|window| window == SEED).map_or(0, |at| at + SEED.len());
        let secret = file.get(seed..seed + 32).context("32 bytes of a key")?;
        Ok(Self { name: name.to_owned(), forms: forms_of(secret) })
    }

    /// Takes a token: pieces of its text, in any case, and the bytes of its signature, which is what must not be known.
    ///
    /// # Errors
    /// It is none.
    pub fn token(name: &str, text: &str) -> Result<Self> {
        let body = text.strip_prefix(PREFIX).context("a token")?;
        ensure!(body.len() > 150, "a token has a signature");
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes())?;
        let signature = &bytes[bytes.len() - 68..];
        let mut forms = forms_of(signature);
        // The rest of a token is no secret, and much of it is in every one of a mesh.
        for part in [&body[body.len() - 100..body.len() - 60], &body[body.len() - 40..]] {
            forms.push(("text", part.as_bytes().to_vec()));
            forms.push(("text", part.to_ascii_uppercase().into_bytes()));
        }
        Ok(Self { name: name.to_owned(), forms })
    }

    /// Returns the first form it is found in.
    pub fn found_in(&self, place: &[u8]) -> Option<&'static str> {
        self.forms.iter().find(|(_, form)| contains(place, form)).map(|(form, _)| *form)
    }
}

/// Returns the first bytes of a secret as they are written by programs.
fn forms_of(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let start = &secret[..BYTES];
    let listed = |each: fn(&u8) -> String| start.iter().map(each).collect::<Vec<_>>().join(", ").into_bytes();
    let mut forms = vec![
        ("bytes", start.to_vec()),
        ("hex", HEXLOWER.encode(start).into_bytes()),
        ("hex", HEXUPPER.encode(start).into_bytes()),
        ("a list of numbers", listed(u8::to_string)),
        ("a list of numbers", start.iter().map(u8::to_string).collect::<Vec<_>>().join(",").into_bytes()),
        ("a list of hex numbers", listed(|byte| format!("{byte:02x}"))),
        ("a list of hex numbers", listed(|byte| format!("{byte:x}"))),
        ("escaped bytes", start.escape_ascii().to_string().into_bytes()),
    ];
    // Within a longer text the secret may begin in the middle of a group of characters.
    for skipped in 0..3 {
        let part = &secret[skipped..skipped + 15];
        forms.push(("base64", BASE64_NOPAD.encode(part).into_bytes()));
        forms.push(("base64", BASE64URL_NOPAD.encode(part).into_bytes()));
    }
    for skipped in 0..5 {
        let text = BASE32_NOPAD.encode(&secret[skipped..skipped + 15]);
        forms.push(("base32", text.to_ascii_lowercase().into_bytes()));
        forms.push(("base32", text.into_bytes()));
    }
    forms
}

fn contains(place: &[u8], form: &[u8]) -> bool {
    let Some((first, rest)) = form.split_first() else { return false };
    let mut from = 0;
    while let Some(at) = place.get(from..).and_then(|place| place.iter().position(|byte| byte == first)) {
        if place.get(from + at + 1..).is_some_and(|after| after.starts_with(rest)) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> Vec<u8> {
        (0..32).map(|n| n * 7 + 3).collect()
    }

    fn pkcs8() -> Vec<u8> {
        let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
        [&head[..], &SEED, &seed()].concat()
    }

    #[test]
    fn a_key_is_found_in_every_form_a_program_may_write() {
        let secret = Secret::key("k", &pkcs8()).expect("a key");
        let all = [b"log: ".to_vec(), seed()].concat();
        for text in [
            format!("{:?}", seed()),
            format!("{:?}", pkcs8()),
            format!("{:02x?}", seed()),
            format!("{:x?}", seed()),
            serde_json::to_string(&seed()).expect("JSON"),
            HEXLOWER.encode(&pkcs8()),
            HEXUPPER.encode(&all),
            all.escape_ascii().to_string(),
        ] {
            assert!(secret.found_in(text.as_bytes()).is_some(), "{text}");
        }
        for before in 0..8 {
            let within = [&vec![9; before][..], &seed(), &[1, 2, 3]].concat();
            for text in
                [BASE64_NOPAD.encode(&within), BASE64URL_NOPAD.encode(&within), BASE32_NOPAD.encode(&within)]
            {
                assert!(secret.found_in(text.as_bytes()).is_some(), "{before} {text}");
            }
        }
        assert!(secret.found_in(&all).is_some());
        let mut other = seed();
        other[3] += 1;
        assert_eq!(secret.found_in(format!("{other:?} {}", BASE64_NOPAD.encode(&other)).as_bytes()), None);
    }

    #[test]
    fn a_token_is_found_whole_cut_and_decoded() {
        let bytes: Vec<u8> = (0..200).map(|n| (n % 251) as u8).collect();
        let text = format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase());
        let secret = Secret::token("t", &text).expect("a token");
        for place in [
            text.clone(),
            text.to_ascii_uppercase(),
            text[..text.len() - 50].to_owned(),
            text[text.len() - 50..].to_owned(),
        ] {
            assert!(secret.found_in(place.as_bytes()).is_some(), "{place}");
        }
        assert!(secret.found_in(format!("{bytes:?}").as_bytes()).is_some());
        // What all tokens of a mesh have in common is no secret.
        assert_eq!(secret.found_in(&text.as_bytes()[..100]), None);
        assert!(Secret::token("t", "hunter2").is_err());
    }

    #[test]
    fn a_form_is_found_behind_a_false_start() {
        assert!(contains(b"aaab", b"aab") && contains(b"b", b"b"));
        assert!(!contains(b"aa", b"ab") && !contains(b"", b"a") && !contains(b"a", b""));
    }
}
