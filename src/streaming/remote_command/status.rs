//! What the error stream says at the end of a session.

use serde_json::json;

use crate::runtime::{ExitStatus, Failure};

/// How the negotiated protocol says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusFormat {
    /// Up to v3: a message, nothing after success.
    Text,
    /// From v4 on: one `metav1.Status`, always.
    Json,
}

impl StatusFormat {
    /// The bytes of a session's end.
    pub fn bytes(self, outcome: &Result<ExitStatus, Failure>) -> Vec<u8> {
        let status = match outcome {
            Ok(ExitStatus { code: 0 }) => json!({ "metadata": {}, "status": "Success" }),
            Ok(ExitStatus { code }) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Err(Failure { message }) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        };
        match self {
            StatusFormat::Json => status.to_string().into_bytes(),
            StatusFormat::Text => status["message"].as_str().unwrap_or_default().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_the_clients_words() {
        let ended = |code| Ok(ExitStatus { code });
        assert_eq!(StatusFormat::Json.bytes(&ended(0)), br#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(StatusFormat::Text.bytes(&ended(0)), b"");
        assert_eq!(
            StatusFormat::Text.bytes(&ended(3)),
            b"command terminated with non-zero exit code: exit status 3"
        );
        let status: serde_json::Value =
            serde_json::from_slice(&StatusFormat::Json.bytes(&ended(137))).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "137");
        let failed = Err(Failure::new("no \"such\" program"));
        let status: serde_json::Value = serde_json::from_slice(&StatusFormat::Json.bytes(&failed)).unwrap();
        assert_eq!(status["message"], "Internal error occurred: no \"such\" program");
        assert_eq!(status["code"], 500);
        assert_eq!(StatusFormat::Text.bytes(&failed), b"Internal error occurred: no \"such\" program");
    }
}
