"""Ordinary chat prompts. The base model itself answers them; the adapter must go on answering as it does."""

from __future__ import annotations

import functools
import random
import re

from mixquant_training.generate.catalog import expand
from mixquant_training.generate.words import CATALOG, pick

__all__ = ["prompt", "topical"]

_PROMPTS = [
    "(what is|explain|tell me about|describe|what do you know about) {topic}(|?)", "(write|compose) a (short|) poem about {topic}", "(tell|write) me a (short |)story about a {animal}(| and a {animal})",
    "give me (three|five|some) (tips|ideas) for {hobby}", "how do i (start|get better at|learn) {hobby}?", "what are the (advantages|benefits|risks) of {topic}?", "why is {topic} important?",
    "write (an email|a letter|a note) to my (boss|teacher|landlord|friend) about {topic}", "explain {topic} to a (child|beginner|ten year old)", "what is the difference between a {animal} and a {animal}?",
    "suggest a name for my {animal}", "write a (python|) function that (reverses a list|adds two numbers|counts words in a string|checks if a number is even|finds the largest number in a list)",
    "how can i (sleep better|save money|be more productive|make new friends|reduce stress|eat healthier|learn faster)?", "what should i (cook|bring|wear) for a {event}?", "tell me a joke(| about a {animal})",
    "what is the capital of {country}?", "(who was|tell me about) (Albert Einstein|Marie Curie|Leonardo da Vinci|Cleopatra|Isaac Newton|Mozart|Ada Lovelace|Nikola Tesla)(|?)", "what is your favorite {cuisine} dish?",
    "how does (a rainbow form|a car engine work|photosynthesis work|the internet work|a microwave work|gravity work|a battery work|the heart work)?", "summarize (the story of|) (Romeo and Juliet|Cinderella|Robin Hood|The Odyssey|Little Red Riding Hood)",
    "give me a recipe idea with {food} and {food}", "what can you tell me about {country}?", "how do you say thank you in {language}?", "write a haiku about {topic}", "list (three|five|ten) (facts|things) about {planet}",
    "i feel (sad|tired|nervous|happy|bored|lonely) today", "what does it mean to be (kind|brave|honest|free|happy)?", "(correct|rewrite|improve) this sentence: {sentence}", "give me a synonym for {word}", "use the word {word} in a sentence",
    "what are good (books|movies) about {topic}?", "plan a (healthy|cheap|quick) (breakfast|dinner) for me", "what is the meaning of the word {word}?", "how many (days are in a year|hours are in a week|continents are there|planets are there|seconds are in an hour)?",
    "hello(|, how are you)?", "hi there", "good (morning|evening)", "who (are|made) you?", "can you help me with my (homework|essay|speech)?", "i'm preparing for a {event}. any advice?", "should i learn {skill} or {skill}?",
    "what does a {job} do?", "describe the color {color} to someone who cannot see", "write a slogan for a (shop|company) that sells {product}s", "is it better to (run or swim|read or listen|rent or buy|cook or order)?",
    "what are the rules of {sport}?", "compare {city} and {city}", "what is (democracy|inflation|recursion|osmosis|irony|a metaphor|a black hole|blockchain|an algorithm|entropy)?", "write a birthday message for {first}",
    "what happened in (1969|1989|1492|1914|2000)?", "why is the sky blue?", "how (old|big|far away) is the (sun|moon|earth)?", "what is (2+2|7 times 8|12 plus 30|half of 50)?", "translate good night into {language}", "give me a (motivational|funny) quote",
    "write a dialogue between a {job} and a {job}", "what are some {genre} movies?", "what makes {musicgenre} music special?", "how do plants like {plant} grow?", "explain the phrase \"(break the ice|piece of cake|once in a blue moon|bite the bullet)\"",
    "write a product description for a {product}", "what's a good gift for a {job}?", "list the steps to (change a tire|bake bread|paint a wall|write an essay|plant a tree|brew coffee)", "what is {material} used for?",
    "which is (faster|louder|bigger|older|healthier), a {animal} or a {animal}?", "what weighs more, (a {animal} or a {product}|a bucket of water or a bucket of sand)?", "what is the plural of {word}?", "how do you spell {word}?", "what kind of word is {word}?",
    "how many letters are in {word}?", "what is the comparative of {adjective}?", "put {word} into a question", "what comes after (Tuesday|the number nine|the letter f)?", "suggest a game for (a long drive|two people|a big family)", "recommend (a sport|a book|a pet|a drink|a holiday) for (lazy people|a quiet evening|someone like me|a family with kids)",
    "what can i do (on a Sunday|without a TV|with an old {product}|in {city})?", "any ideas for (a costume|a school project|a first date|a speech)?", "what should i read next?", "i can't sleep. what helps?", "what is the point of {hobby}?", "do you prefer {food} or {food}?",
    "can (a {animal}|people|robots) (dream|swim|count|laugh)?", "is (a {animal} a mammal|{food} good for you|{material} a metal|the moon a planet)?", "why do people like {musicgenre}?", "who was the most important person in the history of {topic}?", "name (three|four) things made of {material}",
    "what rhymes with {word}?", "finish this: once there was a {animal} that", "write a (riddle|rhyme|proverb) about (a {animal}|{topic}|{food})", "how would a {job} explain {topic}?", "what would happen without {material}?", "give (two|three) reasons (for|against) {topic}", "what do you call someone who loves {topic}?",
    "how do i say no to my (boss|neighbor|mother)?", "what is the nicest word in {language}?", "is {language} hard to learn?", "my {animal} is afraid of thunder. what now?", "how do i know if {food} is still good?", "what do (vegans|athletes|astronauts|sailors) eat?", "tell me something about {word}",
    "what does \"{word}\" mean?", "which (color|instrument|season|city) do you like best?", "what is more useful, {skill} or {skill}?", "explain the joke: a {animal} walks into a bar", "say something nice about {first}", "what is a {job} afraid of?", "how long does a {animal} live?", "where does the word {word} come from?",
    "is it rude to (whistle|be late|ask for money)?", "how do i (thank|comfort|surprise|invite) a {job}?", "what is it like to live in {country}?", "what do people in {country} eat for breakfast?", "describe {city} in three words", "what would you ask a {job}?", "make up a name for a {restaurant} menu",
]  # fmt: skip


@functools.cache
def _topical() -> dict[str, list[str]]:
    rows = (line.partition(": ") for line in (CATALOG / "questions.txt").read_text().splitlines())
    return {domain: questions.split("|") for domain, _, questions in rows}


def topical(rng: random.Random) -> tuple[str, str]:
    """A domain of the catalogue, and a question about it that words answer and no function does."""
    domain = rng.choice(sorted(_topical()))
    text = rng.choice(_topical()[domain])
    return domain, text[0].upper() + text[1:] if rng.random() < 0.7 else text


def prompt(rng: random.Random) -> str:
    """One prompt."""
    text = expand(rng.choice(_PROMPTS), rng)
    text = re.sub(r"\{(\w+)\}", lambda match: pick(match.group(1), rng, held=False, free=rng.random() < 0.3), text)
    if rng.random() < 0.7:
        text = text[0].upper() + text[1:]
    return text
