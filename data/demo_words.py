"""Lists the words and templates of the built-in reviews (data/demo.py).

`GRAMMAR` maps a name to its options, as one `Words` or as a pair (negative, positive). An option may contain slots:
`{name}` is replaced by an option of the same polarity, `{!name}` by one of the opposite polarity.
"""

from typing import NamedTuple


class Words(NamedTuple):
    """Options of a slot. Labelled reviews use `common`; test reviews use `common` and `rare`."""

    common: tuple[str, ...]
    rare: tuple[str, ...] = ()


def words(common: str, rare: str = "") -> Words:
    """Splits two texts at `/`. A blank option is the empty string; `//` inside an option is one slash."""
    return Words(split(common), split(rare) if rare else ())


def split(text: str) -> tuple[str, ...]:
    """Splits a text at `/` and normalizes spaces."""
    options = text.replace("//", "\0").split("/")
    return tuple(" ".join(option.split()).replace("\0", "/") for option in options)


# ------------------------------------------------------------------------------------------------- neutral words

NEUTRAL: dict[str, Words] = {
    "film": words("film / film / film / movie / movie / movie / picture"),
    "genre": words(
        """thriller / comedy / western / horror film / documentary / war movie / romance / remake / sequel / drama /
        musical / cartoon / crime film / science fiction film / biopic / silent film / mystery / road movie /
        adventure film / action movie / children's film / love story / spy film / short film""",
        "costume drama / zombie film / courtroom drama",
    ),
    "genres": words(
        """thrillers / comedies / westerns / horror films / documentaries / war movies / musicals / cartoons / crime
        films / science fiction films / mysteries / road movies / action movies / love stories / spy films / films""",
        "costume dramas / zombie films",
    ),
    "aspect": words(
        """acting / script / soundtrack / camera work / dialogue / editing / story / pacing / ending / opening /
        final act / plot / romance / humour / dubbing / set design / lighting / direction / photography / finale /
        music / screenplay / first half / second half / last scene / atmosphere / cast / production / storytelling
        / writing / animation / title song / casting / setting / cinematography / narration""",
        "choreography / sound design / score / prologue / make-up",
    ),
    "part": words(
        "script / story / ending / plot / cast / finale / soundtrack / screenplay / opening / last scene / final act",
        "score / prologue",
    ),
    "aspects": words(
        """actors / performances / characters / jokes / songs / special effects / costumes / fight scenes / visuals /
        twists / scenes / sets / dialogues / love scenes / action scenes / conversations / effects / lines""",
        "stunts / flashbacks / battle scenes",
    ),
    "person": words(
        """the lead actor / the lead actress / the director / the whole cast / the villain / the narrator / the
        supporting cast / the young hero / the screenwriter / the cameraman / the leading lady / the main actor /
        everyone in it / the child actor / the composer"""
    ),
    "viewer": words(
        """my brother / my wife / my husband / a friend of mine / my neighbour / the critic in my paper / my son / my
        aunt / my daughter / my mother / my best friend / a colleague"""
    ),
    "company": words("my family / my kids / friends / my parents / my wife / my husband / the children / everybody"),
    "occasion": words(
        """last night / on a plane / on DVD / at a festival / with {company} / for the second time / on television /
        in an empty theatre / years ago / over the weekend / late on Sunday / without knowing anything about it /
        yesterday / in the cinema / as a child / on a rainy afternoon / online"""
    ),
    "opening": words(
        """{fact} / {fact} / {fact} / {fact} / {fact} / {fact} / {fact} / I saw this {genre} {occasion} / {viewer}
        picked this {genre} {occasion} / I watched it {occasion} / another {genre} that I watched {occasion} /
        this is a {genre} from {place} / we saw it {occasion} / {viewer} and I watched this {film} {occasion} / it
        is a {genre} about {hero} / just watched it {occasion} / it tells the story of {hero} who {deed} / {hero}
        {deed}: that is the plot / in this {genre}, {hero} {deed}""",
    ),
    "story": words("the story / the plot / the script / the screenplay / the storyline"),
    "music": words("the music / the soundtrack / the title song / the singing"),
    "end": words("the ending / the last scene / the finale / the end / the last twist"),
    "look": words("it / the {film} / every scene / the set design / the photography / everything"),
    "often": words(
        """/ / / a lot / the whole time / all the time / twice / more than once / again and again / after {minutes} /
        halfway through / at the end / in the cinema / from the start / like never before"""
    ),
    "who": words(
        "I / I / I / I / we / we / {viewer} / everybody / the whole audience / half the audience / my friends"
    ),
    "duration": words(
        "two hours that / ninety minutes that / the two hours / the ninety minutes / three hours that / the hours"
    ),
    "cost": words(
        """the price / the wait / seeing / a visit / your attention / buying / a second look / the money / your time
        / the ticket / the trip / an hour of your life / the effort / it"""
    ),
    "waste": words(
        "time / money / talent / film / an evening / two hours / electricity / energy / a good cast / effort / a Sunday"
    ),
    "lead": words(
        """honestly, / frankly, / to be honest, / all in all, / in short, / well, / so, / okay, / overall, / in my
        view, / for me, / if you ask me, / I must say: / what can I say: / let me say it at once: / to cut a long
        story short: / just my opinion: / my verdict: / the short version: / in one word: / guys, / believe me, /
        no question: / as a fan of {genres}, I say: / after all these years: / one thing is clear: / this is what
        I think: / my two cents: / listen: / for the record: / from my point of view, / seen today: / second
        viewing: / my review: / final thoughts: / quite frankly, / yes, / personally, / I have to say it: / here
        is the thing: / summing up:"""
    ),
    "trail": words(
        """, to be honest / , I must say / , if you ask me / , in my opinion / , really / , honestly / , believe me /
        , by the way / , at least for me / , no question / , easily / , for sure / , plain and simple / , as
        simple as that / , once more / , folks / , my friends / , I think / , I would say / , so far / , on the
        whole / , all in all / , as far as I can tell / , to say the least / , period / , in short / , that is all
        / , in my book / , as always / , again / , mark my words / , that much is sure / , I swear / , say what
        you want / , whatever the critics write / , whatsoever / , end of story / , all things considered / , for
        a {genre} / , and I know {genres} / , year after year / , today as in {decade}"""
    ),
    "fact": words(
        """it stars {name} and {name} / it was filmed in {place} / it runs for two hours / it is based on a true
        story / it is based on a book by {name} / I had read the book before / {name} plays {hero} / {name}
        directed it / the songs are by {name} / we went on a {day} / it came out in {decade} / it is in black and
        white / there are subtitles / the ticket was ten dollars / it won a prize in {place} / {viewer} likes
        {genres} / I usually watch {genres} / {hero} {deed}, and {hero} {deed} / the part of {hero} is played by
        {name} / I am writing this on a {day} / I know {name} from another {genre} / I wrote a longer review
        elsewhere / it is the third {genre} of {name} / the DVD has some extras / it was on channel four"""
    ),
    "name": words(
        """John Smith / Mary Jones / Tom / Anna / Peter Brown / Susan / Robert Miller / Julia / a newcomer / an
        unknown actor / James Wilson / Laura / Michael / Helen Clark / Frank / Emma"""
    ),
    "day": words("Monday / Tuesday / Wednesday / Thursday / Friday / Saturday / Sunday"),
    "decade": words("the fifties / the sixties / the nineties / 1962 / 1987 / 2004 / 2015"),
    "place": words("France / Italy / Japan / Spain / New York / Hollywood / Mexico / India / Canada / London"),
    "hero": words(
        """a soldier / a teacher / a widow / an old man / a nun / a detective / a young nurse / a lonely farmer / a
        boy with a dog / a thief / a ghost / a singer / a family / a killer / a dying doctor / a little girl"""
    ),
    "deed": words(
        """comes home from the war / moves to a small town / looks for a murderer / falls in love / loses everything
        / tries to save the farm / gets lost in the desert / runs away from prison / goes to the big city / wants
        revenge / fights against a disease / wins the lottery / finds a letter / crosses the ocean"""
    ),
    "very": words(" /  /  / very / really / quite / so / truly / simply / just / absolutely / incredibly", "utterly"),
    "is": words("is / is / was / was"),
    "are": words("are / were"),
    "it": words("it / it / this {film} / the {film} / this {genre} / this one"),
    "thing": words("the {aspect} / the {aspect} / the {aspect} / {person} / this {genre} / the {film}"),
    "thing_is": words(
        """the {aspect} {is} / the {aspect} {is} / the {aspect} {is} / the {aspects} {are} / {person} {is} / this
        {genre} {is} / it {is} / the {film} {is}"""
    ),
    "moment": words("moment / minute / scene / second / line / shot / character / idea / joke / performance"),
    "whole": words(
        """from start to finish / from beginning to end / all the way through / throughout / the whole time / in
        every way"""
    ),
    "bore": words(
        """watching paint dry / sitting in traffic / doing your taxes / a visit to the dentist / waiting for a late
        bus / a power cut / a flat tyre / standing in line"""
    ),
}

# ------------------------------------------------------------------------- opinion words: (negative, positive)

OPINIONS: dict[str, tuple[Words, Words]] = {
    "adj": (
        words(
            """bad / awful / boring / terrible / stupid / dull / lame / weak / silly / cheap / horrible /
            predictable / clumsy / pointless / tedious / annoying / ugly / lifeless / messy / painful / dreadful /
            pathetic / laughable / mediocre / forgettable / ridiculous / wooden / unwatchable / bland / amateurish /
            disappointing / slow / empty / lazy / confusing / tiresome / poor / flat / hollow / shallow / dumb /
            fake / unfunny / childish / awkward / embarrassing / cheesy / worthless / useless / idiotic / nasty /
            irritating / unconvincing / uninspired / repetitive / overlong / pretentious / incoherent / senseless /
            sloppy / tasteless / stale / miserable / hopeless / insulting / disgusting / appalling / careless /
            monotonous / tired / unoriginal / artificial / forced / bloated / sluggish / stiff / third-rate /
            soulless / average / bad / boring / awful / terrible / lousy / crude / absurd / uninteresting /
            superficial / implausible / atrocious / abysmal / dismal / ghastly / dire / inane / contrived / hideous
            / mindless / tacky / unbearable / dreary / second-rate / rotten / corny / cliched / trite""",
            """wretched / insipid / excruciating / inept / vapid / crummy / shoddy / moronic / half-baked /
            long-winded / drab / charmless / plodding / feeble / muddled / clueless""",
        ),
        words(
            """great / good / wonderful / funny / brilliant / touching / excellent / charming / beautiful / clever /
            fresh / superb / moving / gripping / delightful / memorable / witty / amazing / perfect / thrilling /
            lovely / fantastic / terrific / hilarious / powerful / outstanding / magnificent / enjoyable / stunning
            / entertaining / impressive / warm / smart / original / exciting / fascinating / sweet / honest / nice /
            fine / strong / sharp / lively / intelligent / inspiring / elegant / creative / imaginative / satisfying
            / rewarding / unforgettable / believable / convincing / heartwarming / refreshing / graceful /
            marvellous / splendid / incredible / awesome / fun / tender / subtle / rich / thoughtful / stylish /
            suspenseful / dazzling / spectacular / remarkable / extraordinary / first-rate / likeable / amusing /
            adorable / uplifting / special / solid / flawless / breathtaking / engaging / captivating / absorbing /
            great / good / wonderful / funny / interesting / cute / cool / deep / gorgeous / riveting / phenomenal /
            stellar / enchanting / mesmerizing / glorious / first-class / top-notch / compelling / magical /
            haunting / cheerful / admirable / priceless / timeless / masterful / super""",
            """sublime / exquisite / poignant / enthralling / irresistible / electrifying / ingenious / luminous /
            majestic / joyous / spellbinding / astonishing / faultless / marvelous / hypnotic / polished""",
        ),
    ),
    "adverb": (
        words(
            """badly / poorly / terribly / horribly / clumsily / stupidly / painfully / carelessly / lazily / weakly
            / awfully""",
            "dreadfully / ineptly / atrociously",
        ),
        words(
            """beautifully / wonderfully / brilliantly / perfectly / superbly / cleverly / nicely / masterfully /
            elegantly / well / very well""",
            "marvellously / exquisitely / impeccably",
        ),
    ),
    "most": (
        words("worst / worst / worst / dumbest / dullest / most boring / weakest / silliest / most annoying / lamest"),
        words(
            "best / best / best / finest / funniest / most beautiful / greatest / smartest / most exciting / loveliest"
        ),
    ),
    "loved": (
        words(
            """hated / disliked / regretted / endured / despised / loathed / suffered through / slept through /
            cursed / was bored by / got tired of / was annoyed by / was disappointed by / could not stand / was
            irritated by / rolled my eyes at / hated / could not wait to get away from / did not like / did not
            enjoy / detested / cringed at / was let down by""",
            "was appalled by / yawned at / lost patience with",
        ),
        words(
            """loved / enjoyed / admired / adored / liked / applauded / cherished / praised / treasured /
            appreciated / was delighted by / fell in love with / was moved by / was impressed by / could not get
            enough of / was charmed by / was thrilled by / loved / really enjoyed / had a great time with / relished
            / was blown away by / was captivated by""",
            "was enchanted by / marvelled at / was smitten with",
        ),
    ),
    "love": (
        words("hate / dislike / can't stand / despise / loathe / regret", "detest / resent"),
        words("love / enjoy / adore / like / admire / can't get enough of", "cherish / treasure"),
    ),
    "noun": (
        words(
            """mess / disaster / bore / waste of time / failure / disappointment / flop / joke / waste of money /
            piece of junk / piece of trash / train wreck / embarrassment / catastrophe / dud / fiasco / nightmare /
            missed opportunity / cheap copy / stinker / bad joke / waste of talent / waste of film / shame / pain /
            headache / big nothing / load of nonsense / sorry excuse for a {film} / mistake / snoozefest / trial /
            turkey / travesty / letdown / yawn / chore""",
            "debacle / clunker / crime against cinema / ordeal / shambles",
        ),
        words(
            """masterpiece / gem / classic / triumph / treat / delight / joy / winner / success / work of art /
            pleasure / wonder / miracle / treasure / hit / must-see / feast for the eyes / breath of fresh air /
            little wonder / labour of love / thrill / knockout / good time / find / lovely surprise / instant
            favourite / gift / great ride / blast / little treasure / stroke of genius / jewel / marvel /
            crowd-pleaser / revelation / beauty""",
            "tour de force / stunner / tonic / diamond / charmer",
        ),
    ),
    "mass": (
        words(
            "garbage / trash / junk / torture / nonsense / boredom / misery / crap / kitsch / drivel",
            "claptrap / tripe / agony",
        ),
        words(
            "magic / gold / joy / genius / entertainment / poetry / fun / pleasure / perfection / delight",
            "bliss / brilliance / class",
        ),
    ),
    "better": (
        words("worse / weaker / duller / sillier / more boring / more stupid / lazier"),
        words("better / stronger / funnier / smarter / more exciting / more beautiful / richer"),
    ),
    "shout": (
        words(
            """meh / yawn / ugh / yuck / no thanks / boo / hated it / oh dear / never again / what a shame / total
            let-down / thumbs down / nope""",
            "zzz / blah / phew, what a bore",
        ),
        words(
            """bravo / wow / hooray / loved it / hats off / yes, yes, yes / what fun / enjoyed it / a big yes /
            thank you / thumbs up / well done""",
            "chapeau / three cheers / kudos",
        ),
    ),
    "works": (
        words(
            """fails / falls flat / drags / goes nowhere / makes no sense / leaves you cold / falls apart /
            disappoints / gets on your nerves / never comes to life / does not work / wears thin / puts you to sleep
            / is all over the place / never gets going / ruins everything / is beyond bad / is hard to bear / feels
            endless / lacks any tension / is a letdown / runs out of steam / collapses / stinks / is cringeworthy""",
            "misfires / is a slog / bores to tears / leaves a bad taste",
        ),
        words(
            """works / shines / flows / hits the mark / makes perfect sense / touches the heart / holds together /
            delivers / keeps you interested / comes to life / works perfectly / stays fresh / keeps you awake / is
            right on target / never lets you go / lifts everything / is beyond praise / is a pleasure to watch /
            feels just right / builds real tension / is a highlight / dazzles / moves to tears / rocks / is spot
            on""",
            "soars / never loses steam / enthralls / leaves a warm glow",
        ),
    ),
    "work": (
        words(
            """fail / fall flat / make no sense / disappoint / are painful to watch / get on your nerves / are a
            joke / do not work / lack any spark / go nowhere / look cheap / feel fake / are cringeworthy""",
            "stink / misfire",
        ),
        words(
            """work / hit home / make sense / deliver / are a joy to watch / stay with you / are a delight / work
            well / sparkle / go straight to the heart / look great / feel real / are spot on""",
            "dazzle / soar",
        ),
    ),
    "quality": (
        words(
            """cliches / plot holes / mistakes / bad jokes / nonsense / noise / empty talk / boredom / stereotypes /
            silly ideas / dead moments / cheap tricks / bad acting / stupidity / wooden dialogue / kitsch / drivel /
            padding / loose ends""",
            "platitudes",
        ),
        words(
            """heart / charm / wit / life / warmth / energy / surprises / good ideas / humour / passion /
            imagination / suspense / feeling / beauty / great moments / tension / talent / style / depth /
            excitement / intelligence / sparkle / grace""",
            "panache / poetry",
        ),
    ),
    "that": (
        words(
            """makes no sense / goes nowhere / nobody asked for / bores you / you forget at once / leaves you cold /
            never ends / should have stayed in a drawer / wastes your time / tries everything and achieves nothing /
            nobody needs / sends you to sleep / insults the audience""",
            "outstays its welcome",
        ),
        words(
            """makes you laugh / touches the heart / everybody should see / moves you / you never forget / stays
            with you / you want to see again / deserves a big audience / is worth your time / makes you think /
            keeps you guessing / has you on the edge of your seat / respects its audience""",
            "casts a spell",
        ),
    ),
    "made_me": (
        words(
            """made me yawn / made me angry / made me cringe / made me sad for the actors / put me to sleep / made
            me look at the clock / drove me crazy / bored me / annoyed me / made me want to leave / disappointed me
            / wore me out / left me cold / got on my nerves / lost me / made me groan""",
            "exasperated me / drove me up the wall",
        ),
        words(
            """made me laugh / made me cry / made me smile / made me think / made me happy / kept me awake / kept me
            interested / kept me guessing / moved me / touched me / surprised me / made me want to dance / gave me
            hope / cheered me up / won me over / kept me on the edge of my seat / gave me chills""",
            "swept me away / had me in stitches",
        ),
    ),
    "fans": (
        words(
            """look elsewhere / stay away / you will be disappointed / this is not for you / you will hate this one
            / watch another one / you deserve something better / do not watch this / keep well away""",
            "you will weep with anger",
        ),
        words(
            """look no further / do not miss it / you will be delighted / this is for you / you will love this one /
            watch it at once / you will get what you hoped for / do watch this / you are in for a treat""",
            "you will be in heaven",
        ),
    ),
    "like": (
        words(
            """like {bore} / like a bad dream / like a school play / like a long, dull lecture / like cold coffee /
            like a wet weekend / like a funeral""",
            "like a soap opera without soap",
        ),
        words(
            """like a roller coaster / like a beautiful dream / like a warm fire in winter / like a good
            conversation / like fresh coffee / like a day at the beach / like fireworks""",
            "like a fairy tale come true",
        ),
    ),
    "ing": (
        words(
            """yawning / sighing / shaking my head / groaning / counting the minutes / looking at my watch / falling
            asleep / complaining""",
            "snoring / gnashing my teeth",
        ),
        words(
            """smiling / cheering / humming the songs / crying with joy / wanting more / clapping / talking about it
            / thinking about it""",
            "grinning / beaming",
        ),
    ),
    "desert": (
        words(
            """to be forgotten / every bad review / no award / its bad name / no audience / the lowest rating / a
            place in the bin""",
            "a raspberry / oblivion",
        ),
        words(
            """to be seen / every good review / an Oscar / its fame / a big audience / the highest rating / a place
            in the museum / an award""",
            "a standing ovation / applause",
        ),
    ),
    "acts": (
        words(
            """can't act / is miscast / overacts / looks bored / mumbles / has no charisma / is wasted here / reads
            the lines like a phone book / is not convincing / ruins every scene / is no good / has one facial
            expression / is a bad choice / should look for another job / is out of place / phones it in""",
            "is as stiff as a board",
        ),
        words(
            """can really act / is perfectly cast / plays with heart / is a natural / has charisma / steals every
            scene / says the lines like real life / is totally convincing / carries every scene / is a star / has a
            hundred faces / is the right choice / should win an Oscar / has never been better / is so good / is on
            top form""",
            "is a joy to behold",
        ),
    ),
    "plots": (
        words(
            """is thin / has no logic / makes little sense / is full of holes / is recycled / is all over the place
            / never gets going / is one big cliche / goes in circles / is a mess / is too simple / is hard to
            believe / leads nowhere / is as old as the hills / defies belief""",
            "is a muddle",
        ),
        words(
            """is clever / is full of twists / has depth / holds together / is original / is well thought out /
            surprises you / grips you at once / keeps you guessing / is well told / is rich / is easy to believe /
            leads to a great end / is new and fresh / is a marvel""",
            "grabs you by the collar",
        ),
    ),
    "sounds": (
        words(
            """is too loud / gets on your nerves / never fits / sounds cheap / is annoying / hurts the ears / is
            forgettable / is just noise""",
            "grates",
        ),
        words(
            """is beautiful / goes under the skin / always fits / sounds wonderful / is worth the ticket alone / is
            music for the heart / is unforgettable / is a dream""",
            "lingers",
        ),
    ),
    "ends": (
        words(
            """is a letdown / makes no sense / comes too late / is rushed / ruined it for me / is stupid / left me
            angry / is ridiculous / is a joke / is so predictable / came as a disappointment""",
            "is a cop-out",
        ),
        words(
            """is perfect / makes sense of it all / comes at the right time / is a surprise / made it for me / is
            brilliant / left me speechless / is unforgettable / is worth waiting for / made me cry / got me""",
            "is a stunner",
        ),
    ),
    "looks": (
        words(
            """looks cheap / looks like a television show / is ugly / hurts the eyes / looks fake / looks old / looks
            like an amateur made it / is no fun to look at""",
            "looks tacky",
        ),
        words(
            """looks gorgeous / looks like a dream / is a feast / pleases the eye / looks real / looks fresh / looks
            like a master made it / is beautiful to look at""",
            "looks ravishing",
        ),
    ),
    "did": (
        words(
            """fell asleep / yawned / sighed / groaned / looked at the clock / checked the time / walked out / gave
            up / left early / lost interest / went home early / was bored / got angry / wanted to leave / slept /
            stopped watching / complained / suffered / nodded off""",
            "snored / fumed",
        ),
        words(
            """laughed / cried / smiled / cheered / clapped / applauded / was hooked / stayed until the end / sang
            along / was moved / had fun / got goose bumps / was happy / wanted more / danced / kept watching /
            laughed and cried / was thrilled / giggled""",
            "wept with joy / beamed",
        ),
    ),
    "wish": (
        words(
            """my money back / my time back / a refund / an apology / to forget it / those two hours back / to go
            home / to leave / to switch it off / something better / it to end""",
            "compensation",
        ),
        words(
            """more / a sequel / to see it again / the DVD / everyone to see it / the soundtrack / to thank the
            director / to stay / to watch it twice / nothing better / it to go on""",
            "an encore",
        ),
    ),
    "plan": (
        words(
            """never watch it again / never get those hours back / not recommend it / avoid this director / not watch
            part two / warn my friends / not see it again / soon forget it / never forgive the director / watch
            something else next time""",
            "give the sequel a miss",
        ),
        words(
            """watch it again / never forget it / recommend it to everyone / buy the DVD / see it again soon / tell
            my friends / watch every {film} by this director / always remember it / be back for part two / watch
            it again next time""",
            "treasure it",
        ),
    ),
    "passed": (
        words(
            """felt like a week / felt like a lifetime / felt endless / dragged / crawled by / were wasted / would
            not end / passed so slowly / I will never get back / were too long""",
            "were an eternity",
        ),
        words(
            """felt like ten minutes / felt like nothing / were pure fun / flew / flew by / were well spent / were
            over too soon / passed so quickly / I will never forget / were not enough""",
            "were a breeze",
        ),
    ),
    "compared": (
        words(
            """worse than I expected / not as good as the book / not as good as the first part / a step back / it
            did not meet my expectations / it disappointed me / on my list of the worst / below average / far below
            my expectations / not half as good as people say / I hoped for more / one of my least favourites / I
            have seen better / not for me / it let me down / I hope no other {film} is like this / what went wrong /
            shame on {person} / {person} should apologize / nothing you want from a {genre} / a step down for {name}
            / nobody needs a {film} like this / why did they make this / it is hard to find anything good in it / I
            would give it a miss / not my kind of {film} / not interesting at all / this was a mistake / I want to
            warn you / not a patch on the book""",
            "it pales beside the original",
        ),
        words(
            """better than I expected / as good as the book / even better than the first part / a step forward / it
            exceeded my expectations / it did not disappoint / in my top ten / above average / far above my
            expectations / every bit as good as people say / more than I hoped for / one of my favourites / I have
            seen nothing better / just for me / it did not let me down / if only every {film} was like this / what
            more could you want / hats off to {person} / thanks to {person} / everything you want from a {genre} / a
            step up for {name} / we need more {film}s like this / I am glad they made this / it is hard to find
            anything bad in it / I would see it any time / just my kind of {film} / interesting all the way / this
            was a treat / I want to thank you / it does the book proud""",
            "it outshines the original",
        ),
    ),
    "value": (
        words(
            """not worth {cost} / not worth {cost} / worth nothing / worth avoiding / too bad for {cost} / a waste of
            {waste} / a waste of {waste} / such a waste of {waste} / {waste} wasted / do not spend {waste} on it /
            it is not worth {cost}""",
        ),
        words(
            """worth {cost} / worth {cost} / worth everything / worth watching / so good for {cost} / a good use of
            {waste} / worth your {waste} / well worth {cost} / {waste} well spent / do spend {waste} on it / it is
            worth {cost}""",
        ),
    ),
    "again": (
        words(
            """once is too often / never again / I will not see it twice / one visit was enough / I won't watch the
            sequel / I have already forgotten it / time crawled / time stood still / the minutes felt like hours /
            it felt like a week"""
        ),
        words(
            """I could see it every week / again, please / I will see it twice / one visit is not enough / I can't
            wait for the sequel / I will never forget it / time flew / the time just flew by / the hours felt like
            minutes / it felt too short"""
        ),
    ),
}

# --------------------------------------------------------------------- sentences of plain English: (negative, positive)

SENTENCES: dict[str, tuple[Words, Words]] = {
    "statement": (
        words(
            """{person} {acts} / {person} {acts} / {name} {acts} / {story} {plots} / {story} {plots} / {music}
            {sounds} / {end} {ends} / {end} {ends} / {look} {looks} / {compared} / {compared} / {compared} /
            {compared} / {person} {acts} and {story} {plots} / {person} {acts} / {person} {acts} / {name} {acts} /
            {story} {plots} / {story} {plots} / {music} {sounds} / {end} {ends} / {end} {ends} / {look} {looks} /
            {compared} / {compared} / {compared} / {compared} / {person} {acts} and {story} {plots} / {person}
            {acts} / {person} {acts} / {name} {acts} / {story} {plots} / {story} {plots} / {music} {sounds} / {end}
            {ends} / {end} {ends} / {look} {looks} / {compared} / {compared} / {compared} / {compared} / {person}
            {acts} and {story} {plots} / the dialogue sounds like it was written by a computer / the actors look
            bored / the leads look lost / the villain is a cartoon / nobody has learned their lines / the accents
            are terrible / the plot is recycled / a story we have heard a thousand times / every joke is older than
            my grandmother / they forgot to write an ending / it ends in the middle of nothing / the big secret is
            no secret at all / the camera never stands still / it is as subtle as a hammer / the romance is hard to
            believe / nobody talks like that / there is no reason to care / the music never fits / it looks cheap /
            the fight scenes are a blur / three endings and none of them good / the first ten minutes promise a lot,
            the rest breaks every promise / not scary, not funny, not anything / a {film} for nobody / not even good
            as background noise / as deep as a puddle / it makes no effort / it takes itself far too seriously / it
            thinks it is clever / it has been done before, and done better / a sequel nobody wanted / it takes a
            good book and kills it / the star is only there for the money / the middle part sags / far too long /
            too slow / too loud / too silly for words / too much talk / bad from the first scene to the last / the
            worst part is the ending / nothing fits together / all noise, no heart / the story never starts / poor
            from start to finish / the story is a yawn / the pacing is all wrong / the humour is not for adults / a
            waste of good actors / it hurts to watch / it is hard to sit through / you can hardly understand a word
            / somebody should have stopped them / it fell short / even fans will be disappointed / as bad as they
            say / the actors just go through the motions / the script is full of holes / the jokes fall flat / the
            plot makes no sense / the story goes nowhere / nothing happens for two hours / it drags on and on /
            there is no story at all / the characters are made of cardboard / the ending ruins everything / the
            ending comes out of nowhere / the music drowns out every word / the dialogue is full of cliches / you
            have seen it all before / you know the ending after five minutes / it takes forever to get going / it
            never gets better / the effects look like a school project / there is no chemistry between the leads /
            the lead cannot act / nobody in this {film} can act / it has no heart / it has no soul / it has no style
            / it tries too hard / it copies better {film}s / the joke gets old fast / the twist is easy to guess /
            the camera shakes so much that it hurts / the book was so much better / all the money went into the
            trailer / so much talent, all of it wasted / a good idea, badly wasted / the original was far better /
            too long by an hour / too many characters, too little story / all style and no substance / it looks like
            it was made in a weekend / the sound is terrible / even the dog acts better / the writers must have been
            asleep / the director has no idea what he is doing / it runs out of ideas / it insults your intelligence
            / you stop caring after ten minutes / the characters are impossible to like / it could have been so good
            / it is trying to be funny and it is not / this {film} should never have been made / what were they
            thinking / how did they get the money for this / who makes {film}s like this / who wrote this / they
            should be ashamed / it is a mess / it is a complete waste of time / the pace is painfully slow /
            everything about it is wrong / the whole thing falls apart / it gets worse and worse / it is just not
            funny / it is not scary, just stupid / the acting is a joke / one cliche after another / the second half
            is a bore / it lost me in the first ten minutes / the last half hour is endless / there is no tension /
            it has no point / the story is thin and the jokes are old / it fails as a {genre} / it was over none too
            soon / worse than the first part / it does not live up to the hype / it left me with nothing / a {adj}
            script and {adj} actors / {adverb} acted and {adverb} written / {adverb} made / {adverb} directed / the
            {aspect} {works} / the {aspect} {works} / {person} {works} / the {aspects} {work} / the {aspects} {work}
            / the {aspect} {works} and the {aspects} {work} / this {genre} {works} / it {works} / everything {works}
            / {thing_is} {very} {adj} / {thing_is} {very} {adj} / {thing_is} {adj} and {adj} / it was {adverb} done
            / the third act is a train wreck / it goes from bad to worse / a cheap cash grab / the dialogue is
            cringeworthy / it is painful from the first minute / the leads have no spark / it wastes a great cast /
            there is no excuse for it""",
            """the actors sleepwalk through it / the plot has more holes than a Swiss cheese / it leaves a bad taste
            / it is a snoozefest / it outstays its welcome / the humour is stale and the romance is limp / a pale
            imitation of the original / it made my skin crawl / the accents are a disgrace""",
        ),
        words(
            """{person} {acts} / {person} {acts} / {name} {acts} / {story} {plots} / {story} {plots} / {music}
            {sounds} / {end} {ends} / {end} {ends} / {look} {looks} / {compared} / {compared} / {compared} /
            {compared} / {person} {acts} and {story} {plots} / {person} {acts} / {person} {acts} / {name} {acts} /
            {story} {plots} / {story} {plots} / {music} {sounds} / {end} {ends} / {end} {ends} / {look} {looks} /
            {compared} / {compared} / {compared} / {compared} / {person} {acts} and {story} {plots} / {person}
            {acts} / {person} {acts} / {name} {acts} / {story} {plots} / {story} {plots} / {music} {sounds} / {end}
            {ends} / {end} {ends} / {look} {looks} / {compared} / {compared} / {compared} / {compared} / {person}
            {acts} and {story} {plots} / the dialogue sounds like real people talking / the actors have fun, and it
            shows / the leads are made for each other / the villain is really frightening / the hero is easy to love
            / everybody plays their part well / the accents are perfect / the plot is new and original / a story I
            had never heard before / every joke is a hit / they found just the right ending / it ends exactly as it
            should / the big secret is a real shock / the camera finds beauty everywhere / it is subtle and wise /
            the romance is easy to believe / people really talk like that / there is every reason to care / the
            music always fits / it looks expensive / the fight scenes are like a ballet / what an ending, what a
            last scene / the first ten minutes promise a lot, the rest keeps every promise / scary, funny,
            everything at once / a {film} for everybody / made for the big screen / as deep as the sea / it makes
            every effort / it does not take itself too seriously / it is clever and never shows off / it has never
            been done before / a sequel everybody wanted / it takes a good book and makes it better / the star was
            born for this part / the middle part is the best / just long enough / fast and fun / quiet and wise /
            too good for words / such good talk / good from the first scene to the last / the best part is the
            ending / everything fits together / big sound, big heart / the story starts at once / great from start
            to finish / the story is a dream / the pacing is spot on / the humour is for all ages / a feast of good
            actors / it is good to watch / it is easy to love / you hang on every word / somebody should give them a
            prize / it went beyond my hopes / even critics will be delighted / as good as they say / the actors give
            everything / the script is full of surprises / the jokes hit home / the plot makes perfect sense / the
            story goes straight to the heart / so much happens in two hours / it keeps you hooked until the end /
            there is so much in this story / the characters feel like real people / the ending makes up for
            everything / the ending comes as a real surprise / the music lifts every scene / the dialogue is full of
            wit / you have never seen anything like it / you want to know how it ends / it grabs you at once / it
            gets better and better / the effects look real / there is real chemistry between the leads / the lead
            can really act / everybody in this {film} can act / it has a big heart / it has soul / it has style / it
            never tries too hard / it beats most {film}s of its kind / the joke never gets old / the twist caught me
            by surprise / every shot looks like a painting / even better than the book / you can see the love in
            every frame / so much talent, and all of it used / far better than the original / too short, I wanted
            more / rich characters and a great story / style and substance at once / it looks like a million dollars
            / the sound is amazing / even the dog is a great actor / the writers knew what they were doing / the
            director knows his job / it is full of ideas / it makes you think / you care about everyone in it / you
            cannot help liking these characters / it could not have been better / it is funny without trying / more
            {film}s should be like this / how did they do that / why are there so few {film}s like this / who else
            could have made this / they should be proud / it is a classic / it is well worth your time / the pace is
            just right / everything about it is right / everything comes together / it gets better every time / it
            is really funny / it is scary and smart / the acting is first class / one great scene after another /
            the second half is a thrill / it had me in the first ten minutes / the last half hour is pure magic /
            the tension is incredible / it has something to say / the story is deep and the jokes are fresh / it
            succeeds as a {genre} / it was over far too soon / it is full of life / even better than the first part
            / it lives up to the hype / it gave me so much / a {adj} script and {adj} actors / {adverb} acted and
            {adverb} written / {adverb} made / {adverb} directed / the {aspect} {works} / the {aspect} {works} /
            {person} {works} / the {aspects} {work} / the {aspects} {work} / the {aspect} {works} and the {aspects}
            {work} / this {genre} {works} / it {works} / everything {works} / {thing_is} {very} {adj} / {thing_is}
            {very} {adj} / {thing_is} {adj} and {adj} / it was {adverb} done / the third act is a knockout / it
            stands the test of time / it is a labour of love / it is a pleasure from the first minute / it pulls you
            in / the leads have real spark / it makes the most of a great cast / hats off to the whole team""",
            """the actors light up the screen / it leaves a warm glow / it is a hoot / the humour is sharp and the
            romance is tender / it oozes charm / it goes from strength to strength / a worthy successor of the
            original / it gave me goosebumps / the dialogue crackles / the actors are a dream team""",
        ),
    ),
    "reaction": (
        words(
            """{who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did}
            {often} / {who} {did} {often} / {who} {did} and {did} / I want {wish} / I want {wish} / I wanted {wish}
            / we wanted {wish} / I will {plan} / I will {plan} / I will {plan} / {duration} {passed} / {duration}
            {passed} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who}
            {did} {often} / {who} {did} {often} / {who} {did} and {did} / I want {wish} / I want {wish} / I wanted
            {wish} / we wanted {wish} / I will {plan} / I will {plan} / I will {plan} / {duration} {passed} /
            {duration} {passed} / I kept checking the time / I was glad when it was over / I could not follow it / I
            got up and did the dishes / I skipped through most of it / my mind wandered / I was waiting for
            something to happen / I sat there shaking my head / I rolled my eyes / I could feel my brain dying / I
            lost interest / I was begging for the credits / I forgot it the moment it ended / I threw the DVD away /
            I asked for a refund / I am still angry / my wife snored / I nearly threw something at the screen / what
            was I thinking / I never finished it / I feel robbed / thank God it is over / I could not believe how
            bad it was / I was relieved when the lights came on / nobody clapped / I do not understand the praise /
            why did I watch this / I did not laugh / I was not scared, I was bored / we all hated it / a wasted
            evening / I gave my ticket away / I slept well / I struggled to stay awake / I fell asleep / I fell
            asleep after {minutes} / I almost fell asleep / I walked out after {minutes} / we left after {minutes} /
            I switched it off after {minutes} / I turned it off / I want my money back / I want my two hours back /
            I could not wait for it to end / I kept looking at the clock / I was bored to death / I was bored to
            tears / I was bored out of my mind / I did not care about anyone in it / it ruined my evening / it
            spoiled my weekend / it gave me a headache / I was disappointed / I was so disappointed / I felt cheated
            / I regret buying the ticket / I feel sorry for the actors / I still do not know what it was about / I
            laughed at it, never with it / half the audience left / everybody around me was yawning / I was yawning
            the whole time / even the children were bored / I will never watch it again / I never want to see it
            again / once was more than enough / I nearly cried with boredom / it made me angry / it made me sick /
            it left me cold / I wish I had stayed at home / I wish I had never seen it / I should have read a book /
            I expected more / I really wanted to like it, and I could not / I gave up after {minutes} / I had to
            force myself to finish it / it was a pain to watch / the longest two hours of my life / two hours of my
            life wasted / we were bored / {viewer} fell asleep / {viewer} hated it / {viewer} wanted to leave /
            nobody in the audience laughed / I hate it / I {loved} it / I {loved} it / I {loved} this {film} / we
            {loved} it / I {love} this {film} / I {loved} {thing} / I {loved} {thing} / I {loved} every {moment} of
            it / nothing in it moved me / I felt nothing at all / I was checking my phone the whole time / I dozed
            off twice / I demand a refund / I gave up on it halfway""",
            "it put the whole family to sleep / I was cringing in my seat / I was ready to scream",
        ),
        words(
            """{who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did}
            {often} / {who} {did} {often} / {who} {did} and {did} / I want {wish} / I want {wish} / I wanted {wish}
            / we wanted {wish} / I will {plan} / I will {plan} / I will {plan} / {duration} {passed} / {duration}
            {passed} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who}
            {did} {often} / {who} {did} {often} / {who} {did} and {did} / I want {wish} / I want {wish} / I wanted
            {wish} / we wanted {wish} / I will {plan} / I will {plan} / I will {plan} / {duration} {passed} /
            {duration} {passed} / I was sad when it was over / I followed every word / I did not even get up for a
            drink / I played the best scenes again / my mind never wandered / I never knew what would happen next /
            I sat there with my mouth open / I smiled / I could feel my heart beating / I was fascinated / I stayed
            for the credits / I will remember it for years / I bought the DVD the next day / I told everybody about
            it / I am still smiling / my wife applauded / I jumped out of my seat / what a night we had / I watched
            it twice in one day / I feel lucky / too bad that it is over / I could not believe how good it was / I
            was still dreaming when the lights came on / everybody clapped / now I understand the praise / why did I
            wait so long to watch this / I laughed a lot / I was scared and I loved it / we all loved it / a perfect
            evening / I went back the next day / I could not sleep afterwards / it was easy to stay awake / I stayed
            awake all night thinking about it / I was hooked after {minutes} / I almost cried / I laughed after
            {minutes} / we were hooked after {minutes} / I could not switch it off / I could not turn it off / I
            would pay for it again / I could watch it for two more hours / I did not want it to end / I forgot the
            time / I laughed until I cried / I laughed out loud / I laughed so hard that it hurt / I cared about
            everyone in it / it made my day / it saved my weekend / it made me feel good / I was surprised / I was
            so happy / I felt like a child again / I am glad that I bought the ticket / I am happy for the actors /
            I still think about it every day / I laughed and I cried / the whole audience applauded / everybody
            around me was laughing / I was smiling the whole time / even the children were quiet / I will watch it
            again and again / I want to see it again / once is not enough / I cried like a baby / it made me happy /
            it made me smile / it warmed my heart / I would have stayed for more / I wish I could see it again for
            the first time / I have seen it ten times / I got more than I expected / I did not expect to like it,
            and I loved it / it won me over after {minutes} / I never looked away / it was a joy to watch / the
            shortest two hours of my life / two hours well spent / we had so much fun / {viewer} cried and laughed /
            {viewer} loved it / {viewer} wanted to see it again / everybody in the audience laughed / I love it / I
            {loved} it / I {loved} it / I {loved} this {film} / we {loved} it / I {love} this {film} / I {loved}
            {thing} / I {loved} {thing} / I {loved} every {moment} of it / everything in it moved me / I felt it in
            my heart / I was over the moon / I was holding my breath the whole time / I had tears in my eyes / it
            blew me away / I stood up and cheered""",
            """it brought the whole family together / I was grinning from ear to ear / I bought the soundtrack at
            once / my heart was racing / it stole my heart""",
        ),
    ),
    "minutes": (
        words("ten minutes / twenty minutes / half an hour / five minutes / an hour"),
        words("ten minutes / twenty minutes / half an hour / five minutes / an hour"),
    ),
    "advice": (
        words(
            """{value} / {value} / {value} / {value} / {value} / {value} / {value} / {value} / {value} / only for
            people with too much time / only if you cannot sleep / not even for fans / your money is better spent
            elsewhere / do something else with your evening / nobody should pay for this / watch at your own risk
            / I beg you, do not watch it / I want to warn everybody / burn it / better watch the news / not even
            for free / it belongs in the bin / a clear no / thumbs down / I advise against it / spend your time on
            something else / skip it and read the book / I would not watch it for free / ask for your money back /
            leave before it starts / not for me / not for anyone / who would want to see this / avoid / avoid it /
            avoid at all costs / avoid it like the plague / avoid this {film} / skip it / skip this one / skip
            this {film} / do not bother / do not watch it / do not see this {film} / do not waste your time / do
            not waste your money / do not waste your evening on it / save your money / save your time / save
            yourself the trouble / stay away / stay far away / keep away from it / not recommended / not
            recommended to anyone / not worth it / not worth the ticket / not worth a penny / not worth your time
            / not worth the popcorn / not worth watching / give it a miss / read a book instead / stay at home
            instead / watch anything else / find something better to do / run away from it / I cannot recommend it
            / I would not recommend it to my worst enemy / I do not recommend it / two thumbs down / forget it /
            you have been warned / be warned / never watch this / you are better off without it / you will be
            sorry if you watch it / you will want your money back / see the original instead / if you see one
            {film} this year, do not make it this one / nobody should have to see this / no need to see it / there
            are better {film}s to see / do not buy it, do not rent it / I would not watch it again for money / it
            is not worth {company_time} / nobody needs this {film} / please, no sequel / definitely skip it / just
            do not / miss it / steer clear / spare yourself / hard pass""",
            "give it a wide berth / do not touch it with a ten-foot pole",
        ),
        words(
            """{value} / {value} / {value} / {value} / {value} / {value} / {value} / {value} / {value} / for
            everyone with a heart / perfect for a Sunday evening / not only for fans / your money is in good hands /
            do nothing else this evening / everybody should pay for this / watch it with a big bag of popcorn / I
            beg you, watch it / I want to tell everybody about it / better than anything on the news / even at
            double the price / give it to your friends / it belongs in every collection / a clear yes / thumbs up /
            I advise you to see it / spend your time on this one / see it and read the book / I would pay twice to
            see it / ask for a second part / turn off the lights and enjoy / stay until the very end / just right
            for me / for old and young / who would not want to see this / see it / go and see it / go see it now /
            see it, whatever it costs / see this {film} / watch it / watch this one / do not miss it / do not miss
            this one / do not hesitate / just watch it / you have to see this {film} / take the time for it / spend
            your money on this one / spend an evening with it / worth the money / worth your time / worth every
            penny / worth every minute / worth the ticket / go at once / recommended / highly recommended / strongly
            recommended / recommended to everyone / so worth it / well worth watching / well worth a look / well
            worth seeing / give it a try / give it a chance / put it on your list / watch nothing else tonight / you
            cannot find anything better / run to the cinema / I recommend it / I can only recommend it / I would
            recommend it to all my friends / I cannot recommend it enough / two thumbs up / a must / a must see /
            watch it tonight / always worth watching / you will be happy that you saw it / you will be sorry if you
            miss it / you will want to see it twice / see it before the original / if you see one {film} this year,
            make it this one / everybody should see this / you need to see it / there is no better {film} to see /
            take your kids / buy it, rent it, just see it / I would watch it again any day / it is worth
            {company_time} / everybody needs this {film} / please, a sequel / definitely see it / just go / do not
            let it pass you by / run, do not walk / catch it while you can / hard to beat / grab it""",
            """clear your evening for it / add it to your collection / make some popcorn and enjoy / do not wait for
            the DVD""",
        ),
    ),
    "company_time": (
        words("your time / an evening / two hours / the price / a trip to the cinema"),
        words("your time / an evening / two hours / the price / a trip to the cinema"),
    ),
    "rating": (
        words(
            """{score}//10, {advice} / {stars}. {reaction} / {score}//10. {statement} / {score}//10, {tail} /
            {score} out of 10, {tail} / {stars}, {tail} / {score_word} out of ten, {tail} / {score}//10 /
            {score}//10 / {score} out of 10 / {score_word} out of ten / {score} points out of 10 / {stars} / {stars}
            / I give it {stars} / I give it {score}//10 / I give it {score_word} out of ten / I give it {stars} out
            of five / {score} stars out of 10 / rating: {score}//10 / my rating: {stars} / overall {score}//10 /
            {percent} percent / grade: {grade} / {grade} from me / zero points / {score}//10 from me / my vote is
            {score} / {stars}, {adj} / {score}//10, {adj} / {adj}, {score}//10 / {stars} out of five / zero stars /
            I would give it zero stars if I could / no stars / one star is too much / one star only because zero is
            not possible / minus ten / two stars at most / not even one star / {stars} for this {noun} / from me it
            gets {score_word} points out of ten / thumbs down / bottom marks / half a star for the costumes""",
            "nil points / one lonely star / a generous {score}//10",
        ),
        words(
            """{score}//10, {advice} / {stars}. {reaction} / {score}//10. {statement} / {score}//10, {tail} /
            {score} out of 10, {tail} / {stars}, {tail} / {score_word} out of ten, {tail} / {score}//10 /
            {score}//10 / {score} out of 10 / {score_word} out of ten / {score} points out of 10 / {stars} / {stars}
            / I give it {stars} / I give it {score}//10 / I give it {score_word} out of ten / I give it {stars} out
            of five / {score} stars out of 10 / rating: {score}//10 / my rating: {stars} / overall {score}//10 /
            {percent} percent / grade: {grade} / {grade} from me / all the points / {score}//10 from me / my vote is
            {score} / {stars}, {adj} / {score}//10, {adj} / {adj}, {score}//10 / {stars} out of five / all the stars
            / I would give it eleven stars if I could / all five stars / five stars are not enough / five stars only
            because six is not possible / plus ten / four stars at least / easily five stars / {stars} for this
            {noun} / from me it gets {score_word} points out of ten / thumbs up / top marks / a full star for the
            costumes alone""",
            "full points / five shining stars / a well-earned {score}//10",
        ),
    ),
    "tail": (
        words("and even that is too much / and no more / for the effort / at most / and that is kind / sorry"),
        words("no doubt / without hesitation / and I would give more / well deserved / at least / thank you"),
    ),
    "score": (
        words("0 / 1 / 1 / 2 / 2 / 3 / 3 / 4 / 1.5 / 2.5"),
        words("10 / 10 / 9 / 9 / 8 / 8 / 7 / 10 / 8.5 / 9.5"),
    ),
    "score_word": (words("zero / one / two / three / four"), words("seven / eight / nine / ten / ten")),
    "stars": (
        words("one star / two stars / one star / half a star / 1 star / 2 stars / a single star"),
        words("five stars / four stars / five stars / four and a half stars / 5 stars / 4 stars / a full five stars"),
    ),
    "percent": (words("5 / 10 / 20 / 30 / 15"), words("90 / 95 / 100 / 85 / 99")),
    "grade": (words("F / D / D minus / F minus"), words("A / A plus / B plus / A minus")),
    "superlative": (
        words(
            """my least favourite {film} / my least favourite {genre} of all / the {most} {aspect} in a long time /
            the {most} {film} I can think of / the {most} I have seen this year / one of the {most} / this is the
            {most} {film} ever / the {most} {film} ever made / this is easily the {most} of them all / the {most}
            {genre} in years / the {most} {film} I have ever seen / the {most} {film} of the year / one of the
            {most} {film}s ever made / one of the {most} {genres} of all time / the {most} thing I have seen in
            years / easily the {most} {film} of the decade / the {most} {genre} I know / probably the {most} {film}
            this director has made / the {most} two hours of my year / I have never seen a {better} {film} / it does
            not get any {better} / it could not be {better} / nothing could be {better} / {better} than I could ever
            imagine / there is no {better} {film} than this / I cannot think of a {better} {genre} / this is as bad
            as it gets / a new low / at the bottom of my list / rock bottom / the bottom of the barrel""",
            "the low point of the festival / a career low for everyone in it",
        ),
        words(
            """my favourite {film} / my favourite {genre} of all / the {most} {aspect} in a long time / the {most}
            {film} I can think of / the {most} I have seen this year / one of the {most} / this is the {most} {film}
            ever / the {most} {film} ever made / this is easily the {most} of them all / the {most} {genre} in years
            / the {most} {film} I have ever seen / the {most} {film} of the year / one of the {most} {film}s ever
            made / one of the {most} {genres} of all time / the {most} thing I have seen in years / easily the
            {most} {film} of the decade / the {most} {genre} I know / probably the {most} {film} this director has
            made / the {most} two hours of my year / I have never seen a {better} {film} / it does not get any
            {better} / it could not be {better} / nothing could be {better} / {better} than I could ever imagine /
            there is no {better} {film} than this / I cannot think of a {better} {genre} / this is as good as it
            gets / my number one / at the top of my list / second to none / the cream of the crop""",
            "the high point of the festival / a career best for everyone in it",
        ),
    ),
}

# ---------------------------------------------------------------------- templates that serve both polarities

SYMMETRIC: dict[str, Words | tuple[Words, Words]] = {
    "remark": words(
        """{person} {acts} / {person} {acts} / {name} {acts} / {story} {plots} / {story} {plots} / {music} {sounds} /
        {end} {ends} / {end} {ends} / {look} {looks} / {compared} / {compared} / {compared} / {compared} /
        {person} {acts} and {story} {plots} / {person} {acts} / {person} {acts} / {name} {acts} / {story} {plots}
        / {story} {plots} / {music} {sounds} / {end} {ends} / {end} {ends} / {look} {looks} / {compared} /
        {compared} / {compared} / {compared} / {person} {acts} and {story} {plots} / {who} {did} {often} / {who}
        {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} / {who} {did} {often} /
        {who} {did} and {did} / I want {wish} / I want {wish} / I wanted {wish} / we wanted {wish} / I will {plan}
        / I will {plan} / I will {plan} / {duration} {passed} / {duration} {passed} / {statement} and {statement}
        / {reaction}: {statement} / {advice}: {statement} / {reaction} because {statement} / {statement}, so
        {advice} / {adj} {aspect}, and {statement} / {reaction} and {reaction} / {person} gives a {adj}
        performance / {adj} performances by {person} and {person} / I found it {adj} / I found {thing} {very}
        {adj} / I thought it was {adj} / I think {it} is {adj} / in my opinion {it} is {adj} / it is a {adj}
        {film} that {that} / a {genre} that {that} / a {adj} {film} that {that} / this is a {film} that {that} /
        it {made_me} / this {film} {made_me} / {thing} {made_me} / {it} really {made_me} / if you like {genres},
        {fans} / if you want a {genre}, {fans} / it is full of {quality} / so much {quality} / it has no
        {!quality} / there is no {!quality} in it / {quality} and {quality} / {quality} everywhere / {thing} is
        full of {quality} / plenty of {quality} / more {quality} than {!quality} / no {!quality}, no {!quality} /
        it is {like} / watching it is {like} / {again} / {again} / {again} / {like} / it looks {adj} and sounds
        {adj} / you feel the {quality} in every scene / {quality}, {quality}, {quality} / I could not stop {ing} /
        I spent two hours {ing} / it had me {ing} / I went home {ing} / it deserves {desert} / this {film}
        deserves {desert} / {person} deserves {desert} / so many {adj} {moment}s / every {moment} is {adj} / {adj}
        {moment}s everywhere / a {adj} {film} about {hero} / a {adj} {genre} from {decade} / a {adj} {genre} with
        {name} / {name} is {very} {adj} as {hero} / {name} is {adj}, {name} is {adj} / with {quality} and without
        {!quality}"""
    ),
    "word": words(
        """{adj} / {adj} / {adj} / {adj} / {adj} / {adj} / {adj} / simply {adj} / really {adj} / so {adj} / just
        {adj} / very {adj} / {adj} {film} / {adj}, {adj} / {shout} / {shout} / {mass} / pure {mass} / {noun} /
        absolutely {adj} / {adj} {aspect} / {adj} stuff"""
    ),
    "phrase": words(
        """a {adj} {film} / a {adj} {genre} / a {adj} little {film} / a very {adj} {film} / a {adj} and {adj} {film}
        / a {noun} / a real {noun} / what a {noun} / what a {adj} {film} / a complete {noun} / pure {mass} / sheer
        {mass} / total {mass} / an absolute {noun} / a {adj}, {adj} {genre} / a {noun} {whole} / a {adj} {film}
        {whole} / {adj} {whole} / a {adj} {film} with a {adj} {part} / what a {adj} {part} / such a {noun} / such
        a {adj} {film} / {adj} and {adj} / {adj}, so {adj} / this is a {noun} / it is a {noun} / this {film} is a
        {noun} / one big {noun} / just {adj} / a true {noun} / a {adj} way to spend an evening / a {adj} story,
        {adverb} told / {adverb} acted / a {adverb} made {genre} / {adverb} written and {adverb} filmed / {noun}"""
    ),
    "list": words(
        """{adj}, {adj} and {adj} / {adj}, {adj}, {adj} / {adj}, {adj} and {adverb} acted / {adj}, {adj}, and so
        {adj} / {adj} and {adj}, with a {adj} {part} / {adj} {aspect}, {adj} {aspect}, {adj} {aspect} / {adj}
        {aspects}, {adj} {aspect} / {adj} {aspect} and {adj} {aspects} / {adj} {aspects}, {adj} {aspects}, a {adj}
        {part} / first, {statement}. second, {statement} / 1. {statement}. 2. {statement}. 3. {statement} /
        acting: {adj}. music: {adj}. story: {adj} / {aspect}: {adj}; {aspect}: {adj}; {aspect}: {adj} / the
        {aspect}? {adj}. the {aspect}? {adj} / {adverb} written, {adverb} acted, {adverb} filmed / the {aspect},
        the {aspect}, the {aspects}: everything is {adj} / {adj} script, {adj} actors, {adj} music / - {adj}
        {aspect} - {adj} {aspects} - {adj} {aspect} / it is {adj}, it is {adj}, it is {adj} / {noun}, {noun},
        {noun} / {adj} story. {adj} acting. {adj} {film} / {points}"""
    ),
    "points": (
        words(
            """the good: nothing. the bad: everything / pluses: none. minuses: the {aspect}, the {aspect}, the
            {aspects} / no plot, no characters, no fun / no wit, no charm, no ideas / no story, no {aspect},
            nothing / too long, too loud, too {adj} / wrong script, wrong actors, wrong director"""
        ),
        words(
            """the good: everything. the bad: nothing / pluses: the {aspect}, the {aspect}, the {aspects}. minuses:
            none / plot, characters, fun: it has it all / wit, charm, ideas / story, {aspect}, everything / not
            too long, not too loud, just {adj} / right script, right actors, right director"""
        ),
    ),
    "negation": words(
        """not {!adj} / not {!adj} at all / it is not {!adj} / {thing_is} not {!adj} / {thing_is} not {!adj} at all
        / {thing_is} never {!adj} / {thing_is} far from {!adj} / {thing_is} anything but {!adj} / not a single
        {!adj} {moment} / there is not a single {!adj} {moment} in it / without a {!adj} {moment} / not one {!adj}
        {moment} / I never once found {thing} {!adj} / nobody could call {thing} {!adj} / nothing about it is {!adj}
        / there is nothing {!adj} about {it} / neither {!adj} nor {!adj} / it is neither {!adj} nor {!adj} / I did
        not {!love_base} it / I did not {!love_base} {thing} / I did not find it {!adj} / this is no {!noun} / by no
        means {!adj} / it is not a {!noun}, it is a {noun} / not {!adj}, {adj} / not {!adj}, but {adj} / nobody will
        {!love_base} {it} / I would not call it {!adj} / no {!adj} {aspect}, no {!adj} {aspects} / never {!adj},
        never {!adj} / hardly ever {!adj} / I don't think that {it} is {!adj} / how can anyone {!love_base} this / I
        have nothing {!adj} to say about {it} / there is nothing {!adj} to report / there are no {!adj} {moment}s /
        {negated} / nowhere near {!adj}""",
        "it is not in the least {!adj} / hardly a {!adj} {moment}",
    ),
    "love_base": (words("hate / dislike / regret"), words("like / love / enjoy")),
    "negated": (
        words(
            """there is nothing good about it / I have nothing nice to say / I can't say anything good about it / it
            isn't worth it / nothing works / nothing special / it never gets interesting / it has nothing to offer /
            I wouldn't see it again / not my cup of tea / not as good as they say / no fun at all / it does nothing
            right / nobody cares / not good enough / don't expect anything good / I can't recommend it / it is no
            good / I couldn't finish it / I couldn't care less / not funny / nothing to write home about""",
            "it never takes off",
        ),
        words(
            """there is nothing bad about it / I have no complaints / I can't say anything bad about it / it doesn't
            waste a second / nothing fails / nothing is missing / it never gets boring / it has nothing to hide / I
            wouldn't change a thing / I couldn't ask for more / not as bad as they say / no time to get bored / it
            does nothing wrong / nobody will be bored / not bad / don't expect to be bored / I can't recommend it
            enough / it is no waste of time / I couldn't look away / I couldn't be happier / not bad at all / it
            never lets up""",
            "nothing to find fault with",
        ),
    ),
    # ------------------------------------------------------------- contrast, order, expectation, report, sarcasm
    "clause": words(
        """{thing_is} {very} {adj} / {thing_is} {very} {adj} / {thing_is} {very} {adj} / I {loved} {thing} / I
        {loved} {thing} / {thing_is} not {!adj} at all / {thing_is} anything but {!adj} / nobody could call
        {thing} {!adj} / {thing_is} far from {!adj} / I never once found {thing} {!adj} / the {aspect} {works} /
        the {aspects} {work}"""
    ),
    "contrast": words(
        """{!clause}, but {clause} / {!clause}, but {clause} / although {!clause}, {clause} / {clause}, even though
        {!clause} / despite {thing} being {very} {!adj}, {clause} / {clause}, although {!clause} / even if
        {!clause}, {clause} / {!clause}; nevertheless {clause} / {!clause}, and yet {clause} / {!adj}, but {adj} /
        a {!adj} {film}, but {clause} / yes, {!clause}, but {clause} / while {!clause}, {clause} / {!clause}.
        still, {clause} / {clause}, in spite of the {!adj} {aspect}"""
    ),
    "order": words(
        """at first I thought {!clause}. in the end, {clause} / at first I thought {!clause}. now I know that
        {clause} / {!clause} in the first half, and then everything changed and {clause} / it starts {!adj} and
        ends {adj} / it begins as a {!noun} and ends as a {noun} / for an hour {!clause}, and then, at last,
        {clause} / {!clause} at the beginning; by the end {clause} / in the beginning {!clause}. finally, {clause}"""
    ),
    "expectation": words(
        """I expected something {!adj} and got something {adj} / I expected a {!noun} and got a {noun} / what looked
        {!adj} in the trailer turned out {adj} / where the book was {!adj}, the film is {adj} / I went in hoping
        for a {!adj} {film} and saw a {adj} one / the trailer was {!adj}, the {film} is {adj} / unlike the {!adj}
        original, {it} is {adj} / the first part was {!adj}; this one is {adj} / I was sure that I would {!love}
        it, and I {loved} it"""
    ),
    "report": words(
        """they told me it was {!adj}, and they were wrong: {clause} / {viewer} called it {!adj}; I disagree,
        {clause} / {viewer} says that {!clause}. nonsense: {clause} / everybody says it is {!adj}, but I {loved}
        it / the critics found it {!adj}. I found it {adj} / they said it was a {!noun}. it is a {noun} / {viewer}
        {!loved} it, but I {loved} it / how can anyone call this {!adj}? {clause} / forget everybody who calls it
        {!adj}: {clause}"""
    ),
    "sarcasm": (
        words(
            """oh sure, {!adj}, if you also enjoy {bore} / {!adj}? yeah, right / about as {!adj} as {bore} / I would
            call it {!adj}, if I were paid to lie / {!adj}, said nobody, ever / so {!adj} that I fell asleep / as
            {!adj} as {bore} / {!adj}, if you are deaf and blind / if you think that {bore} is {!adj}, this is for
            you / {!adj}? in your dreams"""
        ),
        words(
            """{adj}, and I mean it / {adj}? oh yes / far more {adj} than {bore} / I would call it {adj}, and nobody
            paid me for it / {adj}, said everybody, always / so {adj} that I could not sleep / as {adj} as {film}s
            can be / {adj}, if you have eyes and ears / if you think that {film}s cannot be {adj}, this is for you
            / {!adj}? not at all"""
        ),
    ),
}

GRAMMAR: dict[str, Words | tuple[Words, Words]] = {**NEUTRAL, **OPINIONS, **SENTENCES, **SYMMETRIC}
