// shows the buttons, and copies the text before the button that is pressed; without characters that XML escapes
for (const button of document.querySelectorAll('button.copy')) {
  const text = button.previousElementSibling;
  const say = (word) => {
    button.textContent = word;
    setTimeout(() => { button.textContent = 'copy'; }, 2000);
  };
  const select = () => {
    getSelection().selectAllChildren(text);
    say('selected');
  };
  button.hidden = false;
  button.onclick = () => {
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(() => say('copied'), select);
    else select();
  };
}
