//! Signal names: what an image's `STOPSIGNAL`, CRI and `kill` call them, and their numbers on x86 and arm.

use crate::image::Error;

const TABLE: [(&str, i32); 36] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("UNUSED", 31),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", REALTIME_FIRST),
];

/// As glibc and docker count; 32 and 33 belong to threads.
const REALTIME_FIRST: i32 = 34;
const REALTIME_LAST: i32 = 64;

/// `SIGTERM`, `TERM`, `15`, `RTMIN+3`, `SIGRTMINPLUS3`, `RTMAX-2`, in any case.
pub fn parse(text: &str) -> Result<i32, Error> {
    let unknown = || Error::Signal { text: text.chars().take(64).collect() };
    number(text).filter(|number| (1..=REALTIME_LAST).contains(number)).ok_or_else(unknown)
}

fn number(text: &str) -> Option<i32> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN").and_then(|rest| offset(rest, &["+", "PLUS"])) {
        return Some(REALTIME_FIRST + offset).filter(|number| *number <= REALTIME_LAST);
    }
    if let Some(offset) = name.strip_prefix("RTMAX").and_then(|rest| offset(rest, &["-", "MINUS"])) {
        return Some(REALTIME_LAST - offset).filter(|number| *number >= REALTIME_FIRST);
    }
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The number after a sign; nothing at all is 0.
fn offset(rest: &str, signs: &[&str]) -> Option<i32> {
    if rest.is_empty() {
        return Some(0);
    }
    let digits = signs.iter().find_map(|sign| rest.strip_prefix(sign))?;
    let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_numbers() {
        let cases = [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("sigterm", Some(15)),
            ("15", Some(15)),
            ("SIGKILL", Some(9)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMINPLUS15", Some(49)),
            ("SIGRTMAXMINUS14", Some(50)),
            ("RTMAX-2", Some(62)),
            ("RTMAX", Some(64)),
            ("RTMIN+30", Some(64)),
            ("RTMIN+31", None),
            ("RTMAX-31", None),
            ("RTMIN-1", None),
            ("RTMIN+", None),
            ("RTMIN+-1", None),
            ("RTMIN+ 1", None),
            ("0", None),
            ("65", None),
            ("-15", None),
            ("+15", None),
            ("99999999999999999999", None),
            ("", None),
            ("SIG", None),
            ("SIGSIGTERM", None),
            ("TERM ", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_table_is_the_c_librarys() {
        // kill -l of the shell on this machine.
        let output =
            std::process::Command::new("/bin/bash").args(["-c", "kill -l 1 2 9 12 15 17 19 29 31"]).output();
        let Ok(output) = output else { return };
        let names = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<i32> = names.split_whitespace().map(|name| parse(name).unwrap()).collect();
        assert_eq!(numbers, [1, 2, 9, 12, 15, 17, 19, 29, 31]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_signal_or_an_error(text in ".{0,16}") {
            if let Ok(number) = parse(&text) {
                prop_assert!((1..=64).contains(&number));
            }
        }
    }
}
