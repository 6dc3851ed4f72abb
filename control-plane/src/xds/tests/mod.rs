mod clients;
mod delta;
mod sotw;
mod order;
mod properties;
mod refusal;
mod scale;
