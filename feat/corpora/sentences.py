"""The sentences of the built-in corpus: our own, seven to ten words each, varied in their phonetics.

No sentence is shared between sets, so what a network learns from one text cannot help it in another set.
"""

_TRAINING = """
The baker left warm bread on the window shelf.
Seven geese walked slowly across the frozen pond.
A thin rope held the boat against the dock.
Please bring the blue folder to the second office.
Her uncle repaired clocks in a narrow shop.
The train to the coast departs before noon.
Fresh paint dried quickly in the morning breeze.
He counted eleven chairs around the oval table.
Rain filled the stone basin behind the barn.
They planted young oak trees along the road.
The judge asked a short and careful question.
Our neighbours keep honey bees on the roof.
Sharp gravel cut the tyre on the steep hill.
You can borrow the ladder until next Friday.
The museum shows old maps of the harbour.
A quiet voice answered from the upper floor.
Mix the flour with water and a little salt.
The youngest child drew a purple giraffe.
Thick fog covered the valley for three days.
She folded the letter and hid it in a book.
The mechanic found a loose bolt under the engine.
Both rivers meet just south of the village.
He wore a brown jacket with shiny buttons.
Turn left at the fountain and follow the wall.
The choir practised a cheerful song at dusk.
Nobody noticed the small crack in the vase.
Cold soup is pleasant on a hot afternoon.
The farmer measured the field with long strides.
We watched the comet through a borrowed telescope.
A spider built its web across the garden gate.
The price of copper rose again this month.
Lift the cover gently and check the oil.
My cousin teaches physics at the evening school.
The ferry carried twenty cars to the island.
Yellow leaves gathered in the empty swimming pool.
The doctor joined the meeting ten minutes late.
They served roasted fish with lemon and rice.
A broken pencil rolled beneath the wooden desk.
The drummer kept a steady beat all night.
Two foxes crossed the track near the bridge.
Write your full name at the top of the page.
The painter chose a darker shade of green.
Ships wait outside the port until the tide turns.
Each visitor received a map and a paper hat.
The pilot thanked both nurses for their patience.
Dust settled on the unused piano keys.
Every Thursday the bishop feeds his noisy parrots.
Ginger and cinnamon give this cake its smell.
A loud crash woke the whole apartment block.
The weaver joined silver thread to the cloth.
Could you measure the width of that doorway?
Six wagons hauled timber through the muddy pass.
Our choice depends on the weather tomorrow.
Charles sketched the owl perched above the chimney.
The vicar enjoys a joyful tune on Sundays.
Hungry pigeons chased crumbs around the bench.
They argued about the cost of a new fence.
This zipper jams whenever I pull it fast.
A rusty shovel leaned against the orchard wall.
The author finished her third novel in Geneva.
Wash the spinach twice before you boil it.
Bright sparks flew as the blacksmith struck iron.
Few people know how the canyon was formed.
The yacht drifted beyond the edge of the reef.
Grandfather polished his boots for the parade.
Why does the kettle whistle before it boils?
Eight judges tasted the cheese and voted.
The thief escaped through an unlocked skylight.
Measure the angle between these two beams.
Snow fell softly over the quiet churchyard.
An orange balloon floated above the rooftops.
His brother sells vegetables near the railway arch.
The jury heard the same story three times.
Wolves howled somewhere beyond the northern ridge.
She bought a cheap ticket for the early show.
Pour the melted butter over the fresh noodles.
The general refused to discuss his former plan.
Which of these bridges was finished first?
A bee stung the goat on its left ear.
Old newspapers covered the floor of the attic.
The sculptor carved a horse from pale marble.
We shall leave the cottage at half past five.
Strong winds tore the flag from its pole.
The chef whisked egg yolks with brown sugar.
Hold the rail while the tram is moving.
Thousands of starlings circled above the marsh.
The clerk stamped every envelope without looking up.
Ruth gave the puppy a bath in the yard.
Lightning struck the chapel during the sermon.
He dropped his keys down a narrow drain.
Some actors forget their lines under pressure.
The cellar smelled of apples and damp earth.
Jade beads hung from the dancer's collar.
My watch has been slow since last August.
The goalkeeper blocked the shot with one foot.
Do not feed the horses beside the stable.
Three judges agreed, but the fourth one frowned.
A curious otter followed our canoe downstream.
The plumber fixed the shower within an hour.
Fifty soldiers marched past the royal palace.
You ought to varnish that table outdoors.
The moth circled the lamp and vanished.
Vast herds of deer roam the western plain.
She hummed while sewing the torn curtain.
The bus was full, so we went on foot.
Gold coins were found beneath the kitchen floor.
The violin needs a new bridge and two strings.
Kind strangers pushed our van out of the mud.
He boiled the lobster in salted water.
Our teacher drew a large circle on the board.
"""

_VALIDATION = """
The puzzle lost its final piece last winter.
A wide street leads directly to the market.
His voice echoed through the vaulted tunnel.
Open the valve before you start the pump.
The gardener watered the roses just after sunrise.
Several pages were missing from the green notebook.
The old lighthouse still guides the fishing boats.
Keep the receipt in case the lamp is faulty.
The wizard in the play forgot his staff.
Nine monkeys shared a basket of ripe mangoes.
We heard thunder rumble over the distant lake.
The tailor shortened both sleeves by an inch.
Put the sharp knives back in the top drawer.
A gentle nurse bandaged the soldier's thumb.
The cyclist paused to fill her bottle.
Bees were buzzing between the lavender bushes.
He owes his landlord money for the coal.
The choice of carpet surprised all the guests.
Share the last pancake with your little sister.
A frozen pipe burst under the schoolhouse.
"""

_TEST = """
A heavy truck blocked the entrance for an hour.
The students measured how fast the ball would fall.
Warm wool socks are useful in the mountains.
She tuned the violin while the hall was filling.
The postman whistled as he climbed the stairs.
Grapes from this hillside ripen in late September.
The engineer sketched a simple model of the arch.
Choose any ticket and return to the long queue.
The referee stopped the match because of the hail.
Chalk marks showed where the path divided.
Vera keeps her jewels in a leather pouch.
A flock of sheep slept under the cedar.
The editor removed four words from the headline.
Boil the potatoes until their skins begin to split.
Tired hikers rested beside the shallow brook.
The king's horse would not cross the ditch.
Please fasten the latch when you go out.
An elderly couple danced beneath the paper lanterns.
The usher pointed towards two vacant seats.
Fish and chips taste better by the sea.
"""

SENTENCES = {
    "tr": tuple(_TRAINING.strip().splitlines()),
    "cv": tuple(_VALIDATION.strip().splitlines()),
    "tt": tuple(_TEST.strip().splitlines()),
}
