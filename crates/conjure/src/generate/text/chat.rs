//! A conversation that goes on: each answer begins from what the model has read already.

use super::event::{Event, Generated};
use super::language_model::{LanguageModel, Session};
use super::next_token::{Cached, NextToken as _};
use super::request::{TextRequest, room};
use crate::tokens::Message;
use conjure_core::{Error, Result};

/// Messages of a user and a model, and what the model remembers of them.
pub struct Chat<'m> {
    model: &'m LanguageModel,
    session: Cached<Session<'m>>,
    messages: Vec<Message>,
}

impl<'m> Chat<'m> {
    /// Begins a conversation; `system` tells the model how to behave.
    ///
    /// # Errors
    /// The model has no tokenizer or no chat template.
    pub fn new(model: &'m LanguageModel, system: Option<&str>) -> Result<Self> {
        if model.tokenizer()?.chat_template().is_none() {
            return Err(Error::request("the model has no chat template").with_help(
                "it was not trained for conversations: use conjure text, or choose an instruction-tuned model",
            ));
        }
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Ok(Self { model, session: model.session(None)?, messages })
    }

    /// What was said so far, the system's message first if there is one.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Replaces what was said.
    ///
    /// # Errors
    /// Roles other than `system`, `user` and `assistant`, or an order in which they do not take turns.
    pub fn set_messages(&mut self, messages: Vec<Message>) -> Result<()> {
        let mut expected = "user";
        for (at, message) in messages.iter().enumerate() {
            if at == 0 && message.role == "system" {
                continue;
            }
            if message.role != expected {
                return Err(Error::request(format!(
                    "message {} is by {:?}, not by {expected:?}",
                    at + 1,
                    message.role
                ))
                .with_help("user and assistant take turns, after at most one message by system"));
            }
            expected = if expected == "user" { "assistant" } else { "user" };
        }
        if expected == "assistant" {
            return Err(Error::request("the last message has no answer").with_help("leave it out, and ask it again"));
        }
        self.messages = messages;
        Ok(())
    }

    /// Forgets what was said, but not the system's message.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }

    /// Forgets the oldest question and its answer. Whether there was one.
    pub fn drop_oldest(&mut self) -> bool {
        let first = usize::from(self.messages.first().is_some_and(|message| message.role == "system"));
        let there = self.messages.len() >= first + 2;
        if there {
            self.messages.drain(first..first + 2);
        }
        there
    }

    /// Whether the prompt that the model's template makes of this question has the question in it. A template that refuses the
    /// conversation is told of by [`Chat::ask`].
    pub fn is_heard(&self, question: &str) -> bool {
        let Some(template) = self.model.tokenizer().ok().and_then(|tokenizer| tokenizer.chat_template()) else {
            return true;
        };
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", question));
        template.render(&messages, true).map_or(true, |prompt| prompt.contains(question.trim()))
    }

    /// How many tokens the model remembers, and how many it can.
    pub fn context_use(&self) -> (usize, usize) {
        (self.session.len(), self.session.context())
    }

    /// Asks, and remembers question and answer; also an answer that was ended by `on_event`. The request's prompt does not
    /// matter. After an error the conversation is as before.
    ///
    /// # Errors
    /// The conversation does not fit the model's context; those of [`LanguageModel::generate`].
    pub fn ask(
        &mut self,
        question: &str,
        request: &TextRequest,
        on_event: &mut dyn FnMut(&Event) -> bool,
    ) -> Result<Generated> {
        self.messages.push(Message::new("user", question));
        let made = self.answer(request, on_event);
        match &made {
            Ok(made) => self.messages.push(Message::new("assistant", made.text.clone())),
            Err(_) => {
                self.messages.pop();
            }
        }
        made
    }

    fn answer(&mut self, request: &TextRequest, on_event: &mut dyn FnMut(&Event) -> bool) -> Result<Generated> {
        let ids = self.model.tokenizer()?.encode_chat(&self.messages)?;
        let context = self.session.context();
        if let Err(Error::Request { message, .. }) = room(ids.len(), request.max_tokens, context) {
            let mut help = match room(ids.len(), None, context) {
                Ok(room) => format!("ask for {room} or fewer with --max-tokens, "),
                Err(_) => "shorten the question, ".to_owned(),
            };
            // Before this question there may be none to forget.
            if self.messages.iter().any(|message| message.role == "assistant") {
                help += "forget the oldest question and answer, begin a new conversation, ";
            }
            help += "or choose a model with a longer context";
            return Err(Error::request(message).with_help(help));
        }
        self.model.answer(&mut self.session, ids, request, on_event)
    }
}
