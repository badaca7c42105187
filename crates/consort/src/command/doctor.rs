//! `consort doctor`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json::{self, Finding, Severity};
use crate::text::plain;
use crate::ui::{Style, Tone, Unit};

/// Find out what is wrong and what to do.
///
/// Exit code 1 if it finds a problem; warnings do not count.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort doctor
  consort doctor --deep     read and verify the whole store; the node has to be stopped")]
pub(crate) struct Doctor {
    /// Read and verify everything in the store, while the node does not run
    #[arg(long)]
    deep: bool,
}

impl Doctor {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let node = context.node();
        let is_up = node.is_up().await;
        let findings: Vec<Finding> = match (self.deep, is_up) {
            (true, true) => {
                return Err(Error::failed("the store cannot be verified while the node runs")
                    .hint("stop the node (Ctrl-C or SIGTERM), then call this again"));
            }
            (true, false) => verify(context)?,
            (false, true) => node.all(Request::Doctor).await?,
            // It may have been started just now.
            (false, false) => node.all(Request::Doctor).await.unwrap_or_else(not_running),
        };
        context.ui.result(&findings, |findings, style| render(findings, style))?;
        let has_problem = findings.iter().any(|found| found.severity == Severity::Problem);
        if has_problem { Err(Error::Shown) } else { Ok(()) }
    }
}

fn verify(context: &Context) -> Result<Vec<Finding>, Error> {
    let mut progress = context.ui.progress("verifying");
    let found = consort_node::check_store(&context.home, |read| {
        progress.set(Unit::Entries, read, None, "rows");
    })?;
    Ok(found.into_iter().map(Finding::from).collect())
}

/// That the node does not answer is a finding, too.
fn not_running(error: Error) -> Vec<Finding> {
    let (what, todo) = match error {
        Error::Told { message, hint, .. } => (message, hint),
        other => (other.to_string(), None),
    };
    vec![Finding { severity: Severity::Problem, what, todo }]
}

fn render(findings: &[json::Finding], style: Style) -> String {
    let mut text = String::new();
    for (number, Finding { severity, what, todo }) in findings.iter().enumerate() {
        let tone = match severity {
            Severity::Ok => Tone::Good,
            Severity::Warning => Tone::Notice,
            Severity::Problem => Tone::Bad,
        };
        let sign = style.paint(tone, format_args!("{:<8}", severity.as_str()));
        text.push_str(&format!("{sign} {}\n", plain(what)));
        // What has to be done about several in a row is said once, after the last.
        let next = findings.get(number + 1).and_then(|next| next.todo.as_ref());
        if let Some(todo) = todo.as_ref().filter(|todo| next != Some(todo)) {
            text.push_str(&format!("         to do: {}\n", plain(todo)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_do_about_several_findings_is_said_once() {
        let finding = |what: &str, todo: Option<&str>| Finding {
            severity: Severity::Warning,
            what: what.to_owned(),
            todo: todo.map(str::to_owned),
        };
        let findings = [
            finding("one", Some("mend it")),
            finding("two", Some("mend it")),
            finding("three", None),
            finding("four", Some("mend it")),
        ];
        let text = render(&findings, Style::Plain);
        let expected = "\
warning  one
warning  two
         to do: mend it
warning  three
warning  four
         to do: mend it
";
        assert_eq!(text, expected);
    }
}
